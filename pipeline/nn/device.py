"""Which processor computes, and what it is able to. Asks the hardware; knows nothing of networks."""

import os
from dataclasses import dataclass

import torch

from pipeline.errors import TrainingError


@dataclass(frozen=True)
class Device:
    where: torch.device
    half: torch.dtype | None  # the 16-bit numbers that it multiplies itself; whether that is faster is measured

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.where) if self.where.type == "cuda" else "CPU"
        threads = f", {torch.get_num_threads()} threads" if self.where.type == "cpu" else ""
        return f"{name}{threads}"

    @property
    def free_bytes(self) -> int:
        """Of a GPU's own memory; 0 on a CPU."""
        return torch.cuda.mem_get_info(self.where)[0] if self.where.type == "cuda" else 0

    def wait(self) -> None:
        """Until queued work is done, so that a clock shows what it cost."""
        if self.where.type == "cuda":
            torch.cuda.synchronize(self.where)


def pick_device(wanted: str, *, is_deterministic: bool = False) -> Device:
    """`auto` takes a GPU if there is one; `is_deterministic`: the same bytes in every run on the same machine.

    Raises:
        TrainingError: `cuda` wanted, none usable.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "device: cuda is set, but torch sees no GPU. Set `device: auto` or install a CUDA build of torch."
        )
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch's deterministic mode asks for
        # on a GPU, 3D pooling and trilinear upsampling have no deterministic gradient: torch warns and goes on
        torch.use_deterministic_algorithms(True, warn_only=wanted != "cpu" and torch.cuda.is_available())
    if wanted != "cpu" and torch.cuda.is_available():
        torch.backends.cudnn.benchmark = not is_deterministic
        torch.set_float32_matmul_precision("high")
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        where = torch.device("cuda", torch.cuda.current_device())
        return Device(where, torch.bfloat16 if is_native else torch.float16)
    return Device(torch.device("cpu"), torch.bfloat16 if _cpu_multiplies_bfloat16() else None)


def _cpu_multiplies_bfloat16() -> bool:
    """Emulated bf16 is always slower than fp32: only AVX512-BF16 and AMX count."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def channels_last(dims: int) -> torch.memory_format:
    """The layout in which convolutions of this many dimensions are fastest, measured on CPU and GPU."""
    return torch.channels_last_3d if dims == 3 else torch.channels_last
