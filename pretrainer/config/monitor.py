"""How closely a run is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from pretrainer.errors import require


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    every_steps: int = 100
    """Steps between two close looks: norms by layer of gradient, parameters and update, activations, gradient noise
    scale; 0 takes none."""
    noise_slot_blocks: int = 1
    """Slot blocks of which a close look computes the gradient alone, for the gradient noise scale; 0 leaves it out."""

    profile_every_steps: int = 1000
    """Steps between two that are profiled for the share of communication in a step, the 20th of every start besides;
    0 profiles none."""
    device_peak_tflops: float | None = None
    """TFLOP/s that one device reaches at best in the run's precision, for the MFU; if none, that of GPUs that are known
    by their name."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "monitor.every_steps", self.every_steps, "use 0 or more")
        require(self.profile_every_steps >= 0, "monitor.profile_every_steps", self.profile_every_steps, "use 0 or more")
        peak = self.device_peak_tflops
        require(peak is None or peak > 0, "monitor.device_peak_tflops", peak, "use a positive number")
        require(self.noise_slot_blocks >= 0, "monitor.noise_slot_blocks", self.noise_slot_blocks, "use 0 or more")
