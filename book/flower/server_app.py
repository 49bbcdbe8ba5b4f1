"""A Flower server that does its work as usual, and keeps what it receives."""

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

import gleak
from gleak.flower import KeepUpdates

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    any_image = gleak.load_batch("cifar10-samples", indices=[19])  # for its shape and classes
    model = gleak.build_model("convnet", any_image, seed=1)
    strategy = KeepUpdates(
        context.run_config["keep"],
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_available_nodes=1,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        train_config=ConfigRecord({"lr": 0.01, "epochs": 2, "batch_size": 2}),
        num_rounds=1,
    )
