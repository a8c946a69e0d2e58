"""Memory and time of a FairDARTS search step on S2, with and without recomputation of the candidates.

Run: python examples/s2_memory.py [--batch 1 2 4 8] [--size 224] [--device cpu|cuda]
Every figure is from a process of its own: an α step (weights frozen) or a weight step (α frozen), a forward and a
backward pass in float32. On CUDA the peak is what torch allocated at most, weights included; on a CPU it is the peak
of the resident memory less what was resident before, so without weights but with the kernels' scratch memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from nni_fairdarts import FairDARTS
from nni_fairdarts.gates import flat, zero_one_l2
from nni_fairdarts.search import frozen
from nni_fairdarts.spaces import S2

PROC = Path("/proc/self")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--size", type=int, default=224, help="side of the images; under 64 with small-image strides")
    parser.add_argument("--depth", type=int, default=19)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def forget_peak(device: str) -> int:
    """Begin a new peak; returns the bytes that do not count."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return 0
    if (PROC / "clear_refs").exists():
        (PROC / "clear_refs").write_text("5")
    return peak(device)


def peak(device: str) -> int:
    """Most bytes allocated (CUDA) or resident (CPU) since ``forget_peak``; or, where Linux's /proc lacks, ever."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if (PROC / "status").exists():
        return int((PROC / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(args) -> dict:
    """Peak bytes and seconds of a step with ``args.batch[0]`` images; of three, the largest peak and fewest seconds."""
    kind, step = args.only
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    dataset = "imagenet" if args.size >= 64 else "cifar"
    space = S2(dataset=dataset, depth=args.depth, width=args.width).to(args.device)
    supernet = FairDARTS(recompute=kind == "recompute").mutate_model(space)
    alphas = [layer.alpha for layer in supernet.layers]
    weights = [p for p in supernet.parameters() if all(p is not alpha for alpha in alphas)]
    images = torch.randn(args.batch[0], 3, args.size, args.size, device=args.device)
    labels = torch.randint(1000, (args.batch[0],), device=args.device)
    before = forget_peak(args.device)
    seconds = []
    for _ in range(3):  # the first one also loads and tunes kernels
        for parameter in (*weights, *alphas):
            parameter.grad = None
        began = time.perf_counter()
        with frozen(weights if step == "alpha" else alphas):
            loss = cross_entropy(supernet(images), labels)
            if step == "alpha":
                loss = loss + 10 * zero_one_l2(flat(layer.gates() for layer in supernet.layers))
            loss.backward()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"bytes": peak(args.device) - before, "seconds": min(seconds)}


def in_a_process(args, batch: int, kind: str, step: str) -> str:
    """``measure`` in a process of its own, as a cell of the table."""
    names = ("size", "depth", "width", "device", "threads")
    flags = [f"--{name}={getattr(args, name)}" for name in names]
    command = [sys.executable, "-W", "ignore", __file__, *flags, f"--batch={batch}", "--only", kind, step]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:  # its message is above; killed processes leave none
        return "failed"
    result = json.loads(done.stdout.splitlines()[-1])
    return f"{result['bytes'] / 2**20:6.0f} MiB {result['seconds']:4.1f} s"


def main():
    args = parse()
    if args.only:
        print(json.dumps(measure(args)))
        return
    print(f"S2, {args.depth} layers, width {args.width:g}, {args.size}×{args.size}, float32, {args.device}")
    print(f"{'batch':>5} {'candidates':>11} {'α step':>18} {'weight step':>18}")
    for batch in args.batch:
        for kind in ("keep", "recompute"):
            cells = [in_a_process(args, batch, kind, step) for step in ("alpha", "weight")]
            print(f"{batch:5} {kind:>11} {cells[0]:>18} {cells[1]:>18}", flush=True)


if __name__ == "__main__":
    main()
