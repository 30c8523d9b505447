"""Run the benchmarks of this folder, print a table, and save it as JSON and Markdown.

    python kernels/benchmarks/run.py [NAME ...] [--quick] [--compiled] [--threads N] [--device cpu|cuda] [--output FOLDER]

Every file beside this one is a benchmark: a module with `run(device, quick) -> list of rows`, a row being a flat dict. Where
`run` also takes `compiled`, --compiled adds baselines that torch.compile makes, which CUDA devices measure anyway.
"""

import argparse
import importlib
import inspect
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmarks of the plasticity operations.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which benchmarks: {', '.join(names())}; default all")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--compiled", action="store_true", help="on the CPU, too, measure what torch.compile makes")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, each bound to a core (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), help="folder for results.json and .md"
    )
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(names()))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(names())}")
    return chosen


def bind_threads(count: int) -> None:
    """Bind OpenMP's threads to cores. Only a process that has not loaded torch yet takes this."""
    os.environ.update(OMP_NUM_THREADS=str(count), OMP_PROC_BIND="true", OMP_PLACES="cores")


def environment(device: str) -> dict[str, Any]:
    import torch

    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton_version,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_name() -> str:
    """The processor's model with its widest vector instructions, as the system and torch name them."""
    import torch

    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in described.splitlines() if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; rows of one benchmark have the same keys."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([cell(row[key]) for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    options = arguments()
    bind_threads(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    where = environment(device)
    sections = ["\n".join(f"- {key}: {value}" for key, value in where.items())]
    print(sections[0])
    results = {}
    sys.path.insert(0, str(HERE))
    for name in options.names or names():
        run = importlib.import_module(name).run
        extra = {"compiled": True} if options.compiled and "compiled" in inspect.signature(run).parameters else {}
        results[name] = run(device, options.quick, **extra)
        sections.append(f"## {name}\n\n{table(results[name])}")
        print(f"\n{sections[-1]}")
    options.output.mkdir(parents=True, exist_ok=True)
    saved = {"environment": where, "quick": options.quick, "results": results}
    (options.output / "results.json").write_text(json.dumps(saved, indent=2) + "\n")
    (options.output / "results.md").write_text("\n\n".join(sections) + "\n")
    print(f"\nSaved results.json and results.md in {options.output}/")


if __name__ == "__main__":
    main()
