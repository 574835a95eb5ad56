"""What thingsboard-gateway needs of its platform before it publishes anything: leave to.

    python -m benchmarks.gateway.session_limits BROKER_PORT

It asks once for the limits of its session and sends nothing until it has them. They are those of an own
ThingsBoard as shipped: no limit of the rate, 100 messages under way, 64 KiB each.
"""

import asyncio
import json
import sys
from typing import Final

import aiomqtt

NO_LIMITS: Final = {"messages": "", "telemetryMessages": "", "telemetryDataPoints": ""}
LIMITS: Final = {
    "rateLimits": NO_LIMITS,
    "gatewayRateLimits": NO_LIMITS,
    "maxInflightMessages": 100,
    "maxPayloadSize": 65536,
}


async def _answer(broker_port: int) -> None:
    async with aiomqtt.Client("127.0.0.1", broker_port) as broker:
        await broker.subscribe("v1/devices/me/rpc/request/+", qos=1)
        async for message in broker.messages:
            topic = str(message.topic).replace("/request/", "/response/")
            await broker.publish(topic, json.dumps(LIMITS), qos=1)


if __name__ == "__main__":
    asyncio.run(_answer(int(sys.argv[1])))
