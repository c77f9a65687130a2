"""Requests and plans for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

from pretrainer.config_load import load_config
from pretrainer.plan.budget import Ask
from pretrainer.plan.hardware import Prices, load_prices
from pretrainer.plan.planner import Plan, make_plan
from pretrainer.plan.request import Base, Request

ASKS = ("flops", "gpu_hours", "dollars", "parameters", "preset", "tokens", "ratio", "law")


@cache
def prices() -> Prices:
    return load_prices()


@cache
def example() -> Base:
    return Base(config=load_config(None, []), is_example=True)


def request(**given: Any) -> Request:
    """A request on the shipped prices and the quickstart's data unless given otherwise."""
    ask = Ask(**{name: given.pop(name) for name in ASKS if name in given})
    return Request(**{"ask": ask, "base": example(), "prices": prices(), **given})


def plan(**given: Any) -> Plan:
    return make_plan(request(**given))
