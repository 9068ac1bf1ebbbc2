"""`make benchmark`: the numbers that the book promises of itself, measured here and printed.

Speed is measured, never asserted: nothing fails on a slow machine.
"""

import math
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADS, LENGTH, WIDTH = 8, 8192, 64
CACHE = 65536
LONG, CHUNK = 16384, 256
MEGABYTE = 2**20


def main() -> None:
    import torch

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"softmax attention, {HEADS} heads, N = M = {LENGTH}, D = {WIDTH}, float32, no gradient")
    sdpa, chunked = seconds("sdpa"), seconds("chunked")
    print(f"  PyTorch's SDPA {sdpa:.2f} s, chunked {chunked:.2f} s: ratio {chunked / sdpa:.2f}")
    matrix = HEADS * LENGTH**2 * 4
    extra = measured("extra_memory")
    print(
        f"  chunked form, extra memory at its peak: {extra / MEGABYTE:.0f} MB, "
        f"{100 * extra / matrix:.1f} % of the {matrix / MEGABYTE:.0f} MB of the weights"
    )
    print(f"decoding, one query, {HEADS} heads, M = {CACHE}, D = {WIDTH}, float32")
    for name, sdpa, split in zip(DECODED, *decoding(), strict=True):
        print(
            f"  {name}: PyTorch's SDPA {1e3 * sdpa:.1f} ms, in parts {1e3 * split:.1f} ms: "
            f"ratio {split / sdpa:.2f}"
        )
    print(f"linear attention in blocks of {CHUNK}, {HEADS} heads, N = {LONG}, D = {WIDTH}, float32")
    softmax, blocks, plain = linear_attention()
    print(
        f"  causal SDPA {softmax:.2f} s, blocks {1e3 * blocks:.0f} ms: {softmax / blocks:.1f} "
        f"times as fast; a plain product of as many operations {1e3 * plain:.0f} ms: "
        f"ratio {blocks / plain:.2f}"
    )
    print(f"importing attnlib after torch: {measured('import_seconds'):.2f} s")
    print(f"the built site: {site_megabytes():.1f} MB")


def inputs():
    import torch

    torch.manual_seed(0)
    return [torch.randn(1, HEADS, LENGTH, WIDTH) for _ in range(3)]


def seconds(form: str, repeats: int = 3) -> float:
    """The best of some runs."""
    import torch

    from attnlib import chunked_softmax_attention

    forms = {
        "sdpa": torch.nn.functional.scaled_dot_product_attention,
        "chunked": chunked_softmax_attention,
    }
    tensors, best = inputs(), math.inf
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            forms[form](*tensors)
            best = min(best, time.perf_counter() - start)
    return best


DECODED = ("a whole cache", "a view of a longer cache")


def decoding(repeats: int = 40) -> tuple[list[float], list[float]]:
    """Seconds of SDPA and of split decoding for each cache: the best of runs that take turns."""
    import torch

    from attnlib import split_decode

    torch.manual_seed(0)
    query = torch.randn(1, HEADS, 1, WIDTH)
    key, value = (torch.randn(1, HEADS, CACHE, WIDTH) for _ in range(2))
    longer = [torch.zeros(1, HEADS, CACHE + 100, WIDTH) for _ in range(2)]
    for rows, tensor in zip(longer, (key, value), strict=True):
        rows[..., :CACHE, :] = tensor
    views = [rows[..., :CACHE, :] for rows in longer]

    sdpa = torch.nn.functional.scaled_dot_product_attention
    runs = [
        lambda form=form, cache=cache: form(query, *cache)
        for form in (sdpa, split_decode)
        for cache in ((key, value), views)
    ]
    best = [math.inf] * len(runs)
    with torch.no_grad():
        for _ in range(repeats):
            for number, run in enumerate(runs):
                start = time.perf_counter()
                run()
                best[number] = min(best[number], time.perf_counter() - start)
    return best[:2], best[2:]


def linear_attention(repeats: int = 5) -> tuple[float, float, float]:
    """Seconds of causal SDPA, of linear attention in blocks, and of one product of two square
    matrices with the operations of the latter: the best of runs that take turns."""
    import torch

    from attnlib import decayed_attention

    torch.manual_seed(0)
    tensors = [torch.randn(1, HEADS, LONG, WIDTH) for _ in range(3)]
    operations = HEADS * LONG * (4 * WIDTH * WIDTH + 2 * CHUNK * 2 * WIDTH)
    side = round((operations / 2) ** (1 / 3))
    square = torch.randn(side, side)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    runs = [
        lambda: sdpa(*tensors, is_causal=True),
        lambda: decayed_attention(*tensors, chunk=CHUNK),
        lambda: square @ square,
    ]
    best = [math.inf] * len(runs)
    with torch.inference_mode():
        for number in [0, *[1, 2] * repeats]:
            start = time.perf_counter()
            runs[number]()
            best[number] = min(best[number], time.perf_counter() - start)
    return tuple(best)


def extra_memory() -> float:
    """Bytes that a process grows by while the chunked form runs, inputs and output left out."""
    import torch

    from attnlib import chunked_softmax_attention

    tensors = inputs()
    with torch.no_grad():
        chunked_softmax_attention(*[tensor[:, :, :64] for tensor in tensors])
        ballast = torch.ones(2**28)  # 1 GB, so that the peak so far is what is held right now
        before = peak_bytes()
        out = chunked_softmax_attention(*tensors)
    del ballast
    return peak_bytes() - before - out.nbytes


def import_seconds() -> float:
    """Seconds that `import attnlib` takes once torch is there."""
    import torch  # noqa: F401

    start = time.perf_counter()
    import attnlib  # noqa: F401

    return time.perf_counter() - start


def measured(name: str) -> float:
    """The number that a function of this file gives in a fresh process."""
    code = f"import benchmark; print(benchmark.{name}())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return float(done.stdout)


def peak_bytes() -> float:
    """The largest resident size of this process so far (kilobytes on Linux, bytes on macOS)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def site_megabytes() -> float:
    """The size of what `make book` built (0 where it has not run)."""
    files = (ROOT / "_build" / "html").rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / MEGABYTE


if __name__ == "__main__":
    main()
