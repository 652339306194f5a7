"""Predictions of ``epochmeter whatif`` beside what ``--prove`` measures, on ten loops with a known cause.

Each loop of ``tests/support/known_loops.py`` is recorded by ``epochmeter run`` and then run again without its cause. Told are
both numbers with their intervals. The benchmark writes ``results/proofs.json``. It takes about ten minutes, alone on a machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOOPS = Path(__file__).parents[1] / "tests" / "support" / "known_loops.py"
KINDS = {  # the loop, and the counterfactual that is its cause
    "collate": "data_wait",
    "waiting loader": "data_wait",
    "busy loader": "data_wait",
    "waiting workers": "data_wait",
    "busy workers": "data_wait",
    "slow file": "data_wait",
    "collections": "collection",
    "checkpoints": "checkpoint",
    "step checkpoints": "checkpoint",
    "logging": "logging",
}
RESULT = Path(__file__).parent / "results" / "proofs.json"


def epochmeter(*words: str, folder: str) -> str:
    """Return what a command says on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler.cli", *words],
        cwd=folder,
        env={**os.environ, "EPOCHMETER_HOME": str(Path(folder) / "home")},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


def proof_of(kind: str, key: str) -> dict[str, Any]:
    """Return the proof of one loop's cause."""
    with tempfile.TemporaryDirectory() as folder:
        epochmeter("run", "--quiet", str(LOOPS), kind, "plain", folder=folder)
        told = json.loads(epochmeter("whatif", "last", "--prove", "--json", "--", str(LOOPS), kind, "plain", folder=folder))
    predicted = next(row for row in told["whatif"] if row["key"] == key)
    found = next((proof for proof in told.get("proofs", ()) if proof["key"] == key), None)
    assert found is not None, told
    return {
        "kind": kind,
        "key": key,
        "predicted": predicted["saved"],
        "predicted_interval": predicted.get("interval"),
        **{name: found[name] for name in ("again", "again_interval", "measured", "interval", "steps", "outcome")},
    }


def main() -> None:
    """Prove all ten."""
    found = []
    for kind, key in KINDS.items():
        found.append(proof_of(kind, key))
        print(found[-1], file=sys.stderr, flush=True)
    result = {"as_predicted": sum(one["outcome"] == "as predicted" for one in found), "of": len(found), "proofs": found}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['as_predicted']} of {result['of']} as predicted")


if __name__ == "__main__":
    main()
