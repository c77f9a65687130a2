"""What a run cost: device-hours, money by the dated table of prices, and energy by a stated assumption."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pretrainer.plan.hardware import Gpu, Prices

TDP_W = {
    "B200": 1000, "GH200": 900, "H200": 700, "H100 PCIe": 350, "H100 NVL": 400, "H100": 700, "H20": 400, "A100": 400,
    "A800": 400, "A40": 300, "A30": 165, "A10G": 300, "A10": 150, "L40S": 350, "L40": 300, "L4": 72,
}  # fmt: skip
"""Board power of NVIDIA's data sheets (SXM where there are several), by a part of the device's name."""
SHARE_OF_TDP, PUE = 1.0, 1.2
ASSUMPTION = (
    f"device-hours x board power of the data sheet x {SHARE_OF_TDP:g} x PUE {PUE:g}; an assumption and no measurement: "
    "hosts, network and storage are left out, and devices rarely draw their whole board power"
)


def name_of(device: str, known: Iterable[str]) -> str | None:
    """The longest known name all of whose words stand in the device's name as words; None where there is none."""
    words = set(re.findall(r"[a-z0-9]+", device.lower()))
    found = [name for name in known if set(re.findall(r"[a-z0-9]+", name.lower())) <= words]
    return max(found, key=len, default=None)


def gpu_of(device: str, prices: Prices) -> Gpu | None:
    name = name_of(device, prices.gpus)
    return None if name is None else prices.gpus[name]


def cost(devices: Sequence[str], hours: float | None, prices: Prices) -> dict[str, Any]:
    """dollars, and where the price is from; dollars is None where the one device, hours or price are not known."""
    gpu = gpu_of(devices[0], prices) if len(devices) == 1 else None
    if gpu is None or hours is None:
        return {"dollars": None, "why": f"no price is known of {_told(devices)}"}
    price = {"dollars_per_device_hour": gpu.dollars_per_hour, "price_date": prices.date, "price_source": prices.source}
    return {"dollars": round(hours * gpu.dollars_per_hour, 2), **price, "why": "device-hours x price; devices alone"}


def energy(devices: Sequence[str], hours: float | None) -> dict[str, Any]:
    """kWh by the assumption, None where the board power is not known."""
    name = name_of(devices[0], TDP_W) if len(devices) == 1 else None
    if name is None or hours is None:
        return {"kwh": None, "assumption": f"no board power is known of {_told(devices)}"}
    kwh = hours * TDP_W[name] * SHARE_OF_TDP * PUE / 1000
    return {"kwh": round(kwh, 4), "board_power_w": TDP_W[name], "pue": PUE, "assumption": ASSUMPTION}


def _told(devices: Sequence[str]) -> str:
    return " and ".join(devices) or "a device that was not recorded"
