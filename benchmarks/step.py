"""What one step of gradient matching costs, in units of a forward pass.

    python benchmarks/step.py [--json] [--models convnet lenet] [--threads 1]

forward: the network on the batch, without gradients. gradient: what a client computes. step: loss
and image gradient of "inverting-gradients", uncompiled and through torch.compile. features: the
step of "gleak" where it matches peeled activations, which needs no second derivative. Medians of
CPU time, as wall time on a busy machine says little; the peak is that of the whole process.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import torch
from torch.nn import functional as F

import gleak
from gleak.inversion import ATTACKS, peel
from gleak.inversion.objective import Objective
from gleak.inversion.presets import GLEAK_FEATURES

BATCHES = {"lenet": 4, "convnet": 4, "resnet18": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--models", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for model in options.models:
        for mode in ("eager", "features", "compiled"):
            if mode == "compiled" and options.no_compile:
                continue
            row = measure(model, mode)
            if row:
                rows.append(row)
                if not options.json:
                    print(
                        f"{model:9} K={row['batch']} {mode:9} forward {row['forward_ms']:7.2f} ms  "
                        f"gradient {row['gradient_ratio']:5.2f}x  step {row['step_ratio']:5.2f}x  "
                        f"peak {row['peak_mb']:.0f} MB",
                        flush=True,
                    )
    if options.json:
        json.dump(rows, sys.stdout, indent=1)
        print()


def measure(model: str, mode: str) -> dict | None:
    """One row; None where the mode does not apply to the model."""
    batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 3, 4])
    update = gleak.fedsgd(gleak.build_model(model, batch, seed=1), batch)
    peeled, attack = None, ATTACKS["inverting-gradients"]
    if mode == "features":
        if model == "resnet18":
            return None
        peeled, attack = peel(update, batch.label_counts), GLEAK_FEATURES
    labels, compile = batch.labels.sort().values, mode == "compiled"
    objective = Objective(update, labels, attack, peeled, compile=compile)
    images = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(0))
    parameters, fade = list(update.model.parameters()), torch.tensor(1.0)

    def forward():
        with torch.no_grad():
            update.model(images)

    def gradient():
        torch.autograd.grad(F.cross_entropy(update.model(images), batch.labels), parameters)

    def step():
        objective.step([images.detach().requires_grad_()], fade)

    seconds = interleaved(forward, gradient, step, repeats=15 if model == "resnet18" else 60)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "model": model,
        "batch": len(batch),
        "mode": mode,
        "gradient_ratio": round(seconds[1] / seconds[0], 2),
        "step_ratio": round(seconds[2] / seconds[0], 2),
        "peak_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
        "forward_ms": round(1000 * seconds[0], 3),
    }


def interleaved(*functions, repeats: int) -> list[float]:
    """Median CPU seconds of each; taken in turns, so that noise hits all alike."""
    for function in functions:
        for _ in range(3):
            function()
    times = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            began = time.process_time()
            function()
            taken.append(time.process_time() - began)
    return [statistics.median(taken) for taken in times]


if __name__ == "__main__":
    main()
