"""An honest Flower client: it trains on its own images and sends the weights."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn import functional as F

import gleak

app = ClientApp()


def own_images() -> gleak.Batch:
    """What the client holds and never sends."""
    return gleak.load_batch("cifar10-samples", indices=[0, 1, 3, 4])


@app.train()
def train(message: Message, context: Context) -> Message:
    batch = own_images()
    model = gleak.build_model("convnet", batch)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    told = message.content["config"]
    optimizer = torch.optim.SGD(model.parameters(), lr=told["lr"])
    for _ in range(told["epochs"]):
        for part in torch.randperm(len(batch)).split(told["batch_size"]):
            optimizer.zero_grad()
            F.cross_entropy(model(batch.images[part]), batch.labels[part]).backward()
            optimizer.step()
    reply = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(batch)}),
    }
    return Message(content=RecordDict(reply), reply_to=message)
