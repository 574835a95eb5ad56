"""A field device with an OPC UA server: variables from its profile, values from the plant.

The tree is exactly what the profile names, in the profile's namespace, without security: a bench device on
loopback. Values are pushed a few times a second, as controllers of cooling plant do.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Self

from asyncua import Server, ua

from firmware_sim.device_fault import DeviceFault, distort
from protocols.codec import to_raw
from protocols.profile import Profile

LOOPBACK: Final = "127.0.0.1"
PUSH_PERIOD_S: Final = 0.5


class OpcuaDevice:
    """Serves one profile on loopback. Use as an async context manager; `port` must be free."""

    def __init__(self, profile: Profile, values: Callable[[], Mapping[str, float]], *, port: int) -> None:
        self.profile = profile
        self.port = port
        self._values = values
        self._fault: DeviceFault | None = None
        self._server: Any = None
        self._nodes: dict[str, Any] = {}
        self._pushing: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"opc.tcp://{LOOPBACK}:{self.port}"

    @property
    def fault(self) -> DeviceFault | None:
        return self._fault

    async def set_fault(self, fault: DeviceFault | None) -> None:
        """Put the fault in force; None heals. An OPC UA server cannot be silent here: stop the process."""
        if fault is not None and fault.mode == "silent":
            raise ValueError(f"{self.profile.name}: an OPC UA device cannot be 'silent'; use 'refusing'")
        refusing = fault is not None and fault.mode == "refusing"
        self._fault = fault
        if refusing and self._server is not None:
            await self._stop()
        elif not refusing and self._server is None:
            await self._start()
        if self._server is not None:
            await self.push()

    async def push(self) -> None:
        """Write all values now."""
        if self._fault is not None and self._fault.mode == "frozen":
            return
        nan = self._fault is not None and self._fault.mode == "nan"
        for name, value in distort(self._values(), self._fault).items():
            raw = float("nan") if nan else to_raw(self.profile.points[name], value)
            variant = ua.Variant(raw, ua.VariantType.Double)
            await self._server.write_attribute_value(self._nodes[name].nodeid, ua.DataValue(variant))

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        server = Server()
        await server.init()
        server.set_endpoint(f"{self.url}/")
        server.set_server_name("Simulated cooling plant")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        device = None
        for name, point in self.profile.points.items():
            index = await server.register_namespace(point.namespace_uri)
            if device is None:
                device = await server.nodes.objects.add_object(index, "Device")
            identifier = point.identifier.removeprefix("s=")
            node_id = ua.NodeId(identifier, index)
            self._nodes[name] = await device.add_variable(node_id, identifier, 0.0, ua.VariantType.Double)
        await server.start()
        self._server = server
        await self.push()
        self._pushing = asyncio.create_task(self._push_forever(), name=f"push {self.profile.name}")

    async def _stop(self) -> None:
        server, self._server = self._server, None
        if self._pushing is not None:
            self._pushing.cancel()
            with suppress(asyncio.CancelledError):
                await self._pushing
            self._pushing = None
        if server is not None:
            await server.stop()

    async def _push_forever(self) -> None:
        while True:
            await asyncio.sleep(PUSH_PERIOD_S)
            await self.push()
