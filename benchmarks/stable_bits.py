"""What stays the same in the payloads of a hundred runs of this machine, and how many bits that tells at most.

    python benchmarks/stable_bits.py [RUNS]

Nothing is sent: the bodies are made as for a collector, for a package's author (facts apart), and for Google Analytics.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 100


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ["EPOCHMETER_HOME"] = home
        snapshots = [_snapshot() for _ in range(RUNS)]
    from exporters import ga_payload, payload
    from exporters.entropy import facts_of, request_bits
    from exporters.rebuild import rebuild
    from profiler.sending.apart import facts_apart

    bits = {field.name: field.bits for field in facts_of("otlp")}
    whole = [_texts(payload.bodies(rebuild(data))) for data in snapshots]
    stable = set.intersection(*whole)
    named = {name for name, _ in stable if name in bits}
    told_bits = sum(bits[name] for name in named)
    print(f"collector, {RUNS} payloads: {len(stable)} texts are in all of them; {told_bits:.1f} bits of facts")
    for name in sorted(named, key=lambda name: -bits[name]):
        print(f"  {bits[name]:4.1f}  {name}")
    counts = [_texts(payload.bodies(rebuild(facts_apart(data)[0]))) for data in snapshots]
    named = {name for name, _ in set.intersection(*counts) if name in bits}
    print(f"author, the counts: {sum(bits[name] for name in named):.1f} bits of facts ({', '.join(sorted(named))})")
    alone = [_texts(payload.bodies(rebuild(one))) for data in snapshots for one in facts_apart(data)[1]]
    told = [sum(bits.get(name, 0.0) for name, _ in texts) for texts in alone]
    print(f"author, {len(alone)} payloads with one fact: {max(told, default=0.0):.1f} bits at most in one")
    requests = [json.loads(body) for data in snapshots for body in ga_payload.bodies(rebuild(data, "ga"))]
    most = max(request_bits()[request["events"][0]["params"]["metric"]] for request in requests)
    ids = {request["client_id"] for request in requests}
    print(f"Google Analytics, {len(requests)} requests: {most:.1f} bits at most in one; {len(ids)} client ids, all different")


def _snapshot() -> Any:
    from profiler import Profiler
    from profiler.sending.snapshot import run_snapshot

    with Profiler("stable", interval=0.01) as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(5)))
        thread = prof.session.sampler.threads[0]
        while thread.ticks < 2:  # the facts of the machine are known by then
            list(prof.train(range(2)))
    run = prof.summary.run
    return run_snapshot(run, run.started_unix_ns + run.duration_ns)


def _texts(bodies: Iterable[bytes]) -> set[tuple[str, str]]:
    """Return the facts and attributes of some bodies, without the random id."""
    from exporters.payload import readable

    found = set()
    for body in bodies:
        for resource in readable(body)["resourceMetrics"]:
            for entry in resource["resource"]["attributes"]:
                if entry["key"] != "service.instance.id":
                    found.add((entry["key"], json.dumps(entry["value"])))
    return found


if __name__ == "__main__":
    main()
