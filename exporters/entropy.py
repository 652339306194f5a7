"""How much the facts of a payload tell about one machine: bits, computed from the list, by destination.

The bits of a field are the entropy of its words: ``-sum(p * log2(p))`` over their shares (Shannon 1948, "A Mathematical
Theory of Communication", section 6). Where no share is known, all words count as equally frequent. That is the highest
entropy these words can have, so every figure here is an upper bound. The fields of a payload are added up as if none
followed from another, which is an upper bound, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from exporters.allowlist import OUTCOMES, RESOURCE, ListedFact
from exporters.ga_payload import APP_VERSION, TIMES, vocabulary
from exporters.rules import OTHER, Declared, OfApp, Random, Version, Whole, Words, filled

UNIFORM = "upper bound: every word equally frequent"
FIXED = "the same for all of a package's users"
DRAWN = "drawn anew for each run, and kept nowhere: it tells nothing about the machine"
ASSUMED = "assumption: a package has at most 128 published versions in use"
PUBLISHED_VERSIONS = 128
GA_GOAL = 12.0  # bits of one request
SHARES: Mapping[str, tuple[Mapping[str, float], str]] = {  # field: shares of its words (the rest is "other"), and their source
    # None is filled in: no published table of shares covers the people who train models. Uniform words are the safe side.
}


OF_JOB = "epochmeter.distributed."  # an author gets the power of two above the number of ranks, and nothing else of these


@dataclass(frozen=True)
class FieldBits:
    """The bits of one field.

    Attributes:
        name: the field.
        words: how many values it can have.
        bits: the entropy of these values.
        source: where their shares come from.
    """

    name: str
    words: int
    bits: float
    source: str


def entropy_of(shares: Mapping[str, float]) -> float:
    """Return the entropy of some shares in bits. What they lack to 1 is the share of ``other``."""
    rest = 1.0 - sum(shares.values())
    return -sum(share * math.log2(share) for share in (*shares.values(), rest) if share > 0)


def fact_bits(fact: ListedFact, target: str, declared: Declared | None = None) -> FieldBits:
    """Return the bits of one fact at a destination. A fact may also be absent, which counts as one word more."""
    rule = filled(fact.rule_for(target), declared)
    if isinstance(rule, Random):
        return FieldBits(fact.name, 16**rule.digits, 0.0, DRAWN)
    if isinstance(fact.rule, OfApp) or (isinstance(rule, Words) and fact.name.startswith("service.")):
        return FieldBits(fact.name, 1, 0.0, FIXED)
    if isinstance(rule, Whole):  # of the run's place in its job, not of a machine
        return FieldBits(fact.name, rule.most + 1, math.log2(rule.most + 1), UNIFORM)
    if isinstance(rule, Version):
        return FieldBits(fact.name, PUBLISHED_VERSIONS, math.log2(PUBLISHED_VERSIONS), ASSUMED)
    if fact.name in SHARES:
        shares, source = SHARES[fact.name]
        return FieldBits(fact.name, len(shares) + (OTHER not in shares), entropy_of(shares), source)
    words = len(getattr(rule, "values", ())) + 1
    return FieldBits(fact.name, words, math.log2(words), UNIFORM)


def facts_of(target: str, declared: Declared | None = None) -> list[FieldBits]:
    """Return the bits of every fact that this destination gets."""
    return [fact_bits(fact, target, declared) for fact in RESOURCE if target in fact.destinations]


def request_bits(declared: Declared | None = None) -> dict[str, float]:
    """Return the bits of a Google Analytics request, by its metric: its cell, and how often that was met."""
    times = math.log2(len(TIMES))
    found = {}
    for metric, cells in vocabulary(declared).items():
        is_fact = not cells or metric in _facts_in_words()
        count = len(cells) or (PUBLISHED_VERSIONS if metric == APP_VERSION else 1)  # a package's name is that of all its users
        found[metric] = math.log2(count) + (0.0 if is_fact else times)
    return found


def _facts_in_words() -> set[str]:
    return {fact.name.removeprefix("epochmeter.").replace(".", "_") for fact in RESOURCE}


def told_bits(declared: Declared | None = None) -> dict[str, float]:
    """Return the bits of each fact of a package's runs: one of its words, or none, and how the run ended. Each goes apart."""
    words = Counter(word.partition(".")[0] for word in declared.told) if declared is not None else Counter[str]()
    return {"": 0.0, **{name: math.log2((number + 1) * len(OUTCOMES)) for name, number in words.items()}}


def budget(declared: Declared | None = None) -> dict[str, float]:
    """Return the bits that one payload tells at most, by destination. "author": a package's, without ``joint_facts``."""
    return {
        "ga": max(request_bits(declared).values()),
        "otlp": sum(field.bits for field in facts_of("otlp", declared)),
        "prometheus": sum(field.bits for field in facts_of("prometheus", declared)),
        "author": max(
            *(field.bits for field in facts_of("otlp", declared) if not field.name.startswith(OF_JOB)),
            *told_bits(declared).values(),
        ),
        "crash": sum(field.bits for field in facts_of("crash", declared)),
    }
