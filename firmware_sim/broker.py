"""The MQTT broker of a rig without one: amqtt, in a process of its own.

A process of its own, because "the broker died" must mean that a process died, with the sockets of everybody
connected. Fit for demonstrations and tests only: no MQTT 5, no offline queues.

    python -m firmware_sim.broker --port 1883
"""

import argparse
import asyncio
import logging

from amqtt.broker import Broker

LOOPBACK = "127.0.0.1"


async def serve(port: int) -> None:
    """Serve until a signal ends the process; there is no state worth a farewell."""
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{LOOPBACK}:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(config)
    await broker.start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m firmware_sim.broker", description="MQTT broker of the rig"
    )
    parser.add_argument("--port", type=int, required=True, help=f"TCP port on {LOOPBACK}")
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
