"""New text mixed with what the model was trained on: whose shares, and how much.

    python -m pytest -q tests/test_replay_mixture.py
"""

from __future__ import annotations

import pytest

from pipelines.driver.continuation import rows_of
from pipelines.driver.parent import Parent
from pretrainer.data.curriculum import make_segments
from pretrainer.data.mixture import mixing_weights
from pretrainer.errors import ConfigError
from tests.continuations import child, folder, parent, shares, source

__all__ = ["folder", "parent"]  # fixtures


def test_half_of_the_tokens_replay_the_parents_sources(parent: Parent) -> None:
    config = child(parent)
    assert shares(config) == {"new": 0.5, "web": 0.375, "code": 0.125}
    assert config.init.replay == ("web", "code") and config.data.sources[1].uris == ("/texts/web",)
    assert dict(rows_of(config))["replay"] == "web, code: 50.0% of the training tokens, against forgetting"


def test_shares_inside_the_new_sources_are_kept(parent: Parent) -> None:
    two = {"sources": [source("new", share=0.8), source("other", share=0.2)], "seq_len": 64}
    asked = child(parent, data=two, init={"uri": parent.uri, "replay_share": 0.2})
    assert shares(asked) == pytest.approx({"new": 0.64, "other": 0.16, "web": 0.15, "code": 0.05})
    with pytest.raises(ConfigError, match="give every source of data.sources a share"):
        child(parent, data={"sources": [source("new"), source("other")], "seq_len": 64})


def test_one_of_the_parents_sources_can_be_named(parent: Parent, folder: Parent) -> None:
    config = child(parent, init={"uri": parent.uri, "replay": ["code"], "replay_share": 0.25})
    assert shares(config) == {"new": 0.75, "code": 0.25} and config.init.replay == ("code",)
    with pytest.raises(ConfigError, match=r"init.replay='books'.*new, web, code"):
        child(parent, init={"uri": parent.uri, "replay": ["books"]})
    alone = child(folder, train={"learning_rate": 1e-4})
    assert shares(alone) == {"new": None} and dict(rows_of(alone))["replay"].startswith("none: what the model knew")


def test_a_folders_replay_source_is_one_of_the_config(folder: Parent) -> None:
    both = {"sources": [source("new"), source("general")], "seq_len": 64}
    config = child(folder, data=both, init={"uri": folder.uri, "replay": ["general"]}, train={"learning_rate": 1e-4})
    assert shares(config) == {"new": 0.5, "general": 0.5}


def test_shares_of_the_person_stand(folder: Parent) -> None:
    both = {"sources": [source("new", share=0.9), source("general", share=0.1)], "seq_len": 64}
    named = {"uri": folder.uri, "replay": ["general"]}
    config = child(folder, data=both, init=named, train={"learning_rate": 1e-4})
    assert config.init.replay_share == pytest.approx(0.1) and shares(config) == {"new": 0.9, "general": 0.1}
    with pytest.raises(ConfigError, match="init.replay_share=0.5"):
        child(folder, data=both, init={**named, "replay_share": 0.5}, train={"learning_rate": 1e-4})


def test_without_a_new_source_there_is_nothing_to_replay_against(parent: Parent) -> None:
    same = {"sources": [source("web", share=1.0)], "seq_len": 64}
    config = child(parent, data=same)
    assert shares(config) == {"web": 1.0} and config.init.replay == ("web",)
    assert dict(rows_of(config))["replay"] == "web: there is no new source, so all of the training tokens"
    other = {"sources": [{"name": "web", "uris": ["/other"]}], "seq_len": 64}
    with pytest.raises(ConfigError, match="another source of that name"):
        child(parent, data=other)


def test_no_replay_still_measures_forgetting(parent: Parent) -> None:
    """The sources are there, for their held-out documents, and no step takes anything of them."""
    config = child(parent, init={"uri": parent.uri, "replay_share": 0})
    segments = make_segments(config, mixing_weights(config.data.sources, [1000.0] * 3))
    assert [segment.asked for segment in segments] == [(1.0, 0.0, 0.0)]
    assert segments[0].order.mixture.counts(640)[1:] == (0, 0)
    staged = {"sources": [source("new")], "seq_len": 64, "curriculum": [{"until": 0.5}, {"seq_len": 128}]}
    config = child(parent, data=staged, init={"uri": parent.uri, "replay_share": 0})
    assert [segment.shares for segment in config.data.curriculum] == [(1.0, 0.0, 0.0)] * 2


def test_segments_with_shares_leave_room_for_replay(parent: Parent) -> None:
    sources = [source("new", share=0.5), source("other", share=0.5)]
    staged = {"sources": sources, "seq_len": 64, "curriculum": [{"until": 0.5, "shares": [1, 0]}, {}]}
    config = child(parent, data=staged)
    assert config.data.curriculum[0].shares == pytest.approx((0.5, 0, 0.375, 0.125))
    assert config.data.curriculum[1].shares is None
    assert shares(config) == pytest.approx({"new": 0.25, "other": 0.25, "web": 0.375, "code": 0.125})
