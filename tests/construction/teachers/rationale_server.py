"""A chat endpoint that assesses, reasons and judges by rule, for builds in other processes.

    python rationale_server.py FAULT_RATE LATENCY_SECONDS

prints its port, serves until its standard input ends, and prints how often each fault came. With a
fault rate above 0, each fault of the proxy spoils that share of the answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from typing import Any

if __package__:
    from tests.construction.teachers.fault_proxy import FaultProxy
    from tests.construction.teachers.stub_endpoint import Answer, StubEndpoint, complete
else:
    from fault_proxy import FaultProxy
    from stub_endpoint import Answer, StubEndpoint, complete

WORDS = [f"{kind} {thing}" for kind in ("red", "old", "tall") for thing in ("star", "moon", "tram")]


def answer_by_rule(request: dict[str, Any]) -> Answer:
    """Answer by the system message; what it says hangs on the whole request."""
    messages = json.dumps(request["messages"], sort_keys=True)
    draw = int(hashlib.sha256(f"{messages}{request['seed']}".encode()).hexdigest(), 16)
    task = request["messages"][0]["content"].split()[0]
    if task == "ASSESS":
        return complete(json.dumps({"reason": "as drawn", "difficulty": int(draw % 3 > 0)}))
    if task == "VERIFY":
        fields = {"reason": "as drawn", "consistent": draw % 7 > 0, "confidence": draw % 8 / 8}
        return complete(json.dumps({**fields, "confidence": 1 - fields["confidence"] / 2}))
    words = random.Random(draw).sample(WORDS, 9)
    thought = f"The picture shows {', '.join(words)}, and one of them is to be changed."
    answer = f"Find {words[0]} and {words[1]} beside {words[2]}."
    text = f"<reasoning>{thought}</reasoning><answer>{answer}</answer>"
    return complete("I cannot help with that." if draw % 10 == 0 else text)


async def _serve(fault_rate: float, latency_seconds: float) -> None:
    async with StubEndpoint(answer_by_rule, latency_seconds) as endpoint:
        endpoint.keeps_requests = False
        async with FaultProxy(endpoint.port, rate=fault_rate) as proxy:
            sys.stdout.write(f"{proxy.port if fault_rate else endpoint.port}\n")
            sys.stdout.flush()
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            sys.stdout.write(f"{json.dumps(proxy.counts)}\n")


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2])))
