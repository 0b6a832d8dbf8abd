"""Which processor computes, in which precision and memory layout. Asks the hardware; knows nothing of networks."""

from dataclasses import dataclass

import torch

from pipeline.errors import TrainingError


@dataclass(frozen=True)
class Device:
    where: torch.device
    autocast: torch.dtype | None  # None: plain fp32

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.where) if self.where.type == "cuda" else "CPU"
        threads = f", {torch.get_num_threads()} threads" if self.where.type == "cpu" else ""
        return f"{name}{threads}, {str(self.autocast or torch.float32).removeprefix('torch.')}"

    def precision(self) -> torch.autocast:
        return torch.autocast(self.where.type, dtype=self.autocast, enabled=self.autocast is not None)

    def wait(self) -> None:
        """Until queued work is done, so that a clock shows what it cost."""
        if self.where.type == "cuda":
            torch.cuda.synchronize(self.where)


def pick_device(wanted: str) -> Device:
    """`auto` takes a GPU if there is one.

    Raises:
        TrainingError: `cuda` wanted, none usable.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "device: cuda is set, but torch sees no GPU. Set `device: auto` or install a CUDA build of torch."
        )
    if wanted != "cpu" and torch.cuda.is_available():
        return Device(torch.device("cuda"), torch.bfloat16 if torch.cuda.is_bf16_supported() else None)
    return Device(torch.device("cpu"), torch.bfloat16 if _cpu_multiplies_bfloat16() else None)


def _cpu_multiplies_bfloat16() -> bool:
    """Emulated bf16 is slower than fp32: only AVX512-BF16 and AMX count (2.1 to 2.9 times faster than fp32, measured)."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def channels_last(dims: int) -> torch.memory_format:
    """The layout in which convolutions of this many dimensions are fastest, measured on CPU and GPU."""
    return torch.channels_last_3d if dims == 3 else torch.channels_last
