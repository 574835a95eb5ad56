"""The ways to a device: addresses, TLS on either side, a serial line, and how a connection is kept to one."""

import asyncio
import contextlib
import datetime as dt
import fcntl
import os
import re
import shutil
import ssl
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from libmodbus_peer import FaultServer, needs_libmodbus
from modbus_peers import PROFILE, RULES, Device, Readings, healthy, running, unit

from protocols.modbus import ModbusLink, RtuOverTcp, Serial, Tcp, Tls, address_complaints, transport_of
from protocols.modbus import link as link_module
from protocols.profile import Identity, Line, Point, ProfileError
from protocols.reading import RETRY_MAX_S, DeviceError

# ---- addresses ----


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("modbus+tcp://10.0.0.5:1502", Tcp("10.0.0.5", 1502)),
        ("modbus+tcp://pdu-a1", Tcp("pdu-a1", 502)),
        ("modbus+tcp://[::1]:502/", Tcp("::1", 502)),
        ("modbus+rtu+tcp://moxa:4001", RtuOverTcp("moxa", 4001)),
        ("modbus+rtu:///dev/ttyUSB0", Serial("/dev/ttyUSB0")),
        (
            "modbus+rtu:///dev/ttyUSB0?baud=9600&parity=N&stop_bits=2",
            Serial("/dev/ttyUSB0", Line(baud=9600, parity="N", stop_bits=2)),
        ),
    ],
)
def test_a_url_names_a_transport(url, transport):
    assert transport_of(url) == transport


def test_modbus_security_has_its_own_port_and_wants_all_three_files():
    assert transport_of("modbus+tls://pdu", ca="ca", cert="c", key="k") == Tls("pdu", 802, "ca", "c", "k")
    with pytest.raises(ValueError, match="give ca, cert and key"):
        transport_of("modbus+tls://pdu", ca="ca")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("modbus://pdu", "unknown scheme 'modbus'; use modbus\\+tcp://host:502"),
        ("modbus+tcp://", "give host and port"),
        ("modbus+tcp://pdu:abc", "use modbus"),
        ("modbus+tcp://pdu/1", "nothing more"),
        ("modbus+rtu+tcp://moxa", "the port is missing"),
        ("modbus+rtu://dev/ttyUSB0", "after three slashes"),
        ("modbus+rtu:///dev/ttyUSB0?speed=9600", "unknown speed; use baud, parity and stop_bits"),
        ("modbus+rtu:///dev/ttyUSB0?baud=fast", "baud 'fast'; use 300"),
        ("modbus+rtu:///dev/ttyUSB0?parity=even", "use N, E or O"),
        ("modbus+rtu:///dev/ttyUSB0?stop_bits=3", "use 1 or 2"),
    ],
)
def test_a_url_that_names_nothing_is_refused_with_its_remedy(url, sentence):
    with pytest.raises(ValueError, match=sentence):
        transport_of(url)
    with pytest.raises(ValueError, match="certificates belong to modbus\\+tls"):
        transport_of("modbus+tcp://pdu", ca="ca")


def test_p09_two_links_to_a_device_of_one_connection_are_a_mistake():
    twice = [Tcp("pdu", 502), Tcp("PDU", 502), Tcp("pdu", 503)]
    assert address_complaints(twice, [False] * 3) == []
    (complaint,) = address_complaints(twice, [True, False, False])
    assert complaint.startswith("PDU:502: opened twice, and what is there serves one; give these devices the")
    assert ModbusLink(
        Tcp("pdu", 502),
        [unit(Readings(), profile=replace(PROFILE, single_connection=True))],
        clock=lambda: 0.0,
    ).single_connection


def test_p10_a_serial_line_is_opened_once_however_many_units_share_it():
    lines = [Serial("/dev/null"), Serial("/dev/../dev/null", Line(baud=9600)), Serial("/dev/zero")]
    assert len(address_complaints(lines, [False] * 3)) == 1
    assert len(address_complaints([RtuOverTcp("m", 1), Tcp("m", 1)], [False] * 2)) == 1


def test_devices_on_one_line_agree_about_it_or_the_url_says_it():
    slow = replace(PROFILE, line=Line(baud=9600))
    units = [unit(Readings()), unit(Readings(), "b", profile=slow)]
    with pytest.raises(ProfileError, match=r"want different lines \(meter 19200 E 1; b 9600 E 1\)"):
        ModbusLink(Serial("/dev/null"), units, clock=lambda: 0.0)
    ModbusLink(Serial("/dev/null", Line()), units, clock=lambda: 0.0)


# ---- Modbus/TCP Security ----


class TlsFiles:
    """A site's authority, and certificates of it as files."""

    def __init__(self, folder):
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_path)
        self.client = self.issue("client", "controller.site")

    def issue(self, name, identity, **fields):
        issued = self.ca.issue_cert(identity, **fields)
        cert, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        issued.private_key_pem.write_to_path(key)
        with cert.open("wb") as file:
            file.writelines(blob.bytes() for blob in issued.cert_chain_pems)
        return str(cert), str(key)

    def context(self, cert, key):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.ca_path))
        context.load_cert_chain(cert, key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def revoke(self, cert_path):
        """Append a revocation list to the authority's file."""
        authority = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        serial = x509.load_pem_x509_certificate(Path(cert_path).read_bytes()).serial_number
        now = dt.datetime.now(dt.UTC)
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now - dt.timedelta(days=1))
            .next_update(now + dt.timedelta(days=1))
            .add_revoked_certificate(revoked)
            .sign(self.ca._private_key, hashes.SHA256())
        )
        with self.ca_path.open("ab") as file:
            file.write(crl.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def site(tmp_path):
    return TlsFiles(tmp_path)


@contextlib.asynccontextmanager
async def secure_device(context):
    device = Device()
    device._writers = []
    device._server = await asyncio.start_server(device._serve, "127.0.0.1", 0, ssl=context)
    device.port = device._server.sockets[0].getsockname()[1]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(device.stop)
        yield device


def secure(site, device, **fields):
    cert, key = site.client
    return Tls(
        **{"host": "127.0.0.1", "port": device.port, "ca": str(site.ca_path), "cert": cert, "key": key}
        | fields
    )


# What a refused handshake leaves to the collector lands as a warning in whichever test runs by then.
quiet = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


async def test_with_certificates_on_either_side_mbap_frames_travel_inside_tls(site):
    async with secure_device(site.context(*site.issue("device", "127.0.0.1"))) as device:
        device.registers[1][4] = 2305
        readings = Readings()
        async with running(None, unit(readings, writes=RULES), transport=secure(site, device)) as link:
            assert (await readings.until(healthy)).values["voltage_v"] == pytest.approx(230.5)
            assert (await link.write("meter", "voltage_v", 231.0)).confirmed


async def test_a_frame_split_over_tls_records_is_one_frame(site):
    """The library's own TLS framing takes each record for a frame."""
    async with secure_device(site.context(*site.issue("device", "127.0.0.1"))) as device:

        async def in_pieces(frame):
            device._writers[-1].write(frame[:9])
            await asyncio.sleep(0.01)
            return frame[9:]

        device.fault = lambda _tid, _unit, _pdu, frame: in_pieces(frame)
        readings = Readings()
        async with running(None, unit(readings), transport=secure(site, device)):
            await readings.until(healthy)


async def test_the_name_in_the_certificate_may_differ_from_the_address(site):
    async with secure_device(site.context(*site.issue("device", "pdu-a1.site"))) as device:
        readings = Readings()
        where = secure(site, device, server_name="pdu-a1.site")
        async with running(None, unit(readings), transport=where):
            await readings.until(healthy)


@quiet
@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("another name", "pdu-a1.site|127.0.0.1|mismatch"),
        ("expired", "certificate has expired"),
        ("revoked", "certificate revoked"),
        ("another authority", "unable to get local issuer|self.signed"),
        ("no files", "certificates cannot be used"),
    ],
)
async def test_a_certificate_that_must_not_be_trusted_is_named(site, case, sentence, tmp_path):
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    pair = {
        "another name": lambda: site.issue("device", "pdu-a1.site"),
        "expired": lambda: site.issue("device", "127.0.0.1", not_after=past),
    }.get(case, lambda: site.issue("device", "127.0.0.1"))()
    fields = {}
    if case == "revoked":
        site.revoke(pair[0])
    if case == "another authority":
        other = tmp_path / "other"
        other.mkdir()
        fields["ca"] = str(TlsFiles(other).ca_path)
    if case == "no files":
        fields["cert"] = "/nowhere.crt"
    async with secure_device(site.context(*pair)) as device:
        readings = Readings()
        async with running(None, unit(readings), transport=secure(site, device, **fields)):
            down = await readings.until()
        assert down.link == "down"
        assert re.search(sentence, down.fault), down.fault
        assert device.requests == []


@quiet
async def test_a_device_that_does_not_know_us_is_said_and_a_renewed_certificate_needs_no_restart(
    site, tmp_path
):
    other = tmp_path / "other"
    other.mkdir()
    stranger = TlsFiles(other)
    async with secure_device(site.context(*site.issue("device", "127.0.0.1"))) as device:
        ours = tmp_path / "our.crt", tmp_path / "our.key"
        for path, source in zip(ours, stranger.client, strict=True):
            shutil.copy(source, path)
        where = secure(site, device, cert=str(ours[0]), key=str(ours[1]))
        readings = Readings()
        async with running(None, unit(readings), transport=where):
            down = await readings.until(lambda r: r.link == "down")
            assert "unknown ca" in down.fault.lower() or "closed the connection" in down.fault
            for path, source in zip(ours, site.client, strict=True):
                shutil.copy(source, path)
            await readings.until(healthy, within_s=5)


# ---- serial ----


@needs_libmodbus
@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
async def test_a_serial_line_through_socat_is_read_and_written_and_found_again(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    pair = (f"pty,raw,echo=0,link={ours}", f"pty,raw,echo=0,link={theirs}")

    async def line():
        process = await asyncio.create_subprocess_exec("socat", *pair)
        async with asyncio.timeout(5):
            while not (ours.exists() and theirs.exists()):  # noqa: ASYNC110  (files make no event)
                await asyncio.sleep(0.01)
        return process

    socat = await line()
    readings = Readings()
    points = ("power_w", "voltage_v", "current_a")
    one = unit(readings, unit_id=7, points=points, writes=RULES)
    async with running(None, one, transport=Serial(str(ours), Line(parity="N"))) as link:
        async with FaultServer("rtu", theirs, 7):
            await readings.until(healthy, within_s=5)
            assert (await link.write("meter", "voltage_v", 230.0)).confirmed
            socat.kill()  # the adapter is pulled out
            await socat.wait()
            await readings.until(lambda r: r.link == "down", within_s=5)
        for path in (ours, theirs):
            path.unlink(missing_ok=True)
        socat = await line()
        async with FaultServer("rtu", theirs, 7):
            await readings.until(healthy, within_s=8)
    socat.kill()
    await socat.wait()


async def test_a_line_that_is_not_there_or_refuses_its_settings_is_named(tmp_path):
    readings = Readings()
    async with running(None, unit(readings), transport=Serial(str(tmp_path / "tty"))):
        assert "no way to" in (await readings.until()).fault
    readings = Readings()
    async with running(None, unit(readings), transport=Serial("/dev/null", Line())):
        assert "no way to /dev/null" in (await readings.until()).fault


async def test_a_line_that_another_program_holds_is_said_to_be_held():
    ours, theirs = os.openpty()
    try:
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        readings = Readings()
        async with running(None, unit(readings), transport=Serial(os.ttyname(theirs), Line(parity="N"))):
            fault = (await readings.until()).fault
        assert "another program holds it" in fault
        assert "Errno" not in fault
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("host", ["10.0.0..7", "x" * 64])
async def test_a_host_that_is_none_is_a_way_that_is_not_there(host):
    """A URL with such a host is refused before; whoever makes a transport by hand ends no link with it."""
    readings = Readings()
    async with running(None, unit(readings), transport=Tcp(host, 502)):
        assert "no host name" in (await readings.until()).fault


def test_frames_rest_three_and_a_half_characters_apart_and_never_less_than_the_standard_says():
    waits_s = {baud: transport_module_silence(Line(baud=baud)) for baud in (1200, 9600, 19200, 115_200)}
    assert waits_s[9600] == pytest.approx(0.00401, abs=1e-5)
    assert waits_s[1200] == pytest.approx(0.0321, abs=1e-4)
    assert waits_s[115_200] == 0.00175


def transport_module_silence(line):
    from protocols.modbus import transport

    return transport._silence_s(line)


# ---- one connection, kept ----


async def test_p09_there_is_never_a_second_connection_beside_the_first():
    open_now = most = 0

    async def serve(reader, writer):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            for _ in range(3):
                tid, _, length, unit_id = struct.unpack(">HHHB", await reader.readexactly(7))
                pdu = await reader.readexactly(length - 1)
                count = pdu[4]
                writer.write(Device.frame(tid, unit_id, bytes([pdu[0], 2 * count]) + bytes(2 * count)))
        open_now -= 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    readings = Readings()
    where = Tcp("127.0.0.1", server.sockets[0].getsockname()[1])
    units = [unit(readings, f"u{n}", unit_id=n, points=("voltage_v",)) for n in (1, 2, 3)]
    async with running(None, *units, transport=where):
        for _ in range(12):
            await readings.until(healthy, within_s=5)
    server.close()
    assert most == 1


async def test_p10_requests_to_several_units_never_overlap():
    busy = overlapped = 0

    async def slow(frame):
        nonlocal busy, overlapped
        busy += 1
        overlapped += busy > 1
        await asyncio.sleep(0.01)
        busy -= 1
        return frame

    async with Device() as device:
        device.fault = lambda _tid, _unit, _pdu, frame: slow(frame)
        readings = Readings()
        units = [unit(readings, f"u{n}", unit_id=n, writes=RULES) for n in range(1, 6)]
        async with running(device, *units) as link:
            await readings.until(healthy)
            await asyncio.gather(*(link.write(f"u{n}", "voltage_v", 230.0) for n in range(1, 6)))
            await readings.until(healthy)
        assert device.connections == 1
    assert overlapped == 0


async def test_refused_for_an_hour_and_found_within_two_seconds(monkeypatch):
    """An hour of refusals, its pauses taken out: each is counted, bounded, and none is the last."""
    pauses_s = []
    real = link_module.retry_delay_s

    def counted(failures):
        pauses_s.append(real(failures))
        return 0.0

    monkeypatch.setattr(link_module, "retry_delay_s", counted)
    device = Device()
    await device.start()
    await device.stop()
    readings = Readings()
    async with running(device, unit(readings)):
        async with asyncio.timeout(60):
            while sum(pauses_s) < 3600 and len(pauses_s) < 2000:
                await readings.until()
        assert max(pauses_s) <= RETRY_MAX_S
        assert sum(pauses_s[-100:]) / 100 > RETRY_MAX_S / 2  # and it does not hammer either
        await device.start(device.port)
        await readings.until(healthy)
    await device.stop()


async def test_a_device_that_needs_a_pause_after_connecting_gets_it():
    asked_s = []
    async with Device() as device:
        device.fault = lambda _tid, _unit, _pdu, frame: asked_s.append(time.monotonic()) or frame
        readings = Readings()
        began_s = time.monotonic()
        profile = replace(PROFILE, pause_after_connect_s=0.2)
        async with running(device, unit(readings, profile=profile)):
            await readings.until(healthy)
    assert asked_s[0] - began_s >= 0.2


async def test_p21_the_wait_is_the_profiles_and_rtu_on_a_tcp_port_is_named():
    """What an RTU gateway sends is no Modbus TCP: said so, and not waited for."""
    async with Device() as device:
        device.fault = lambda *_: bytes((1, 3, 10, *range(10), 0x12, 0x34))
        readings = Readings()
        async with running(device, unit(readings, profile=replace(PROFILE, reply_wait_max_s=5))):
            down = await readings.until(within_s=1)
        assert "not Modbus TCP" in down.fault
        assert "does RTU framing come out of it?" in down.fault
        device.fault = lambda *_: None
        readings = Readings()
        async with running(device, unit(readings, profile=replace(PROFILE, reply_wait_max_s=0.07))):
            assert "no answer within 0.07 s" in (await readings.until()).fault


async def test_p06_a_cancelled_link_ends_at_once_whatever_it_waits_for():
    async with Device() as device:
        for fault in (None, lambda *_: None):
            device.fault = fault
            profile = replace(PROFILE, reply_wait_max_s=5)
            link = ModbusLink(
                Tcp("127.0.0.1", device.port), [unit(Readings(), profile=profile)], clock=time.monotonic
            )
            task = asyncio.create_task(link.run())
            await asyncio.sleep(0.1)
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=1)
            assert task in done
            assert task.cancelled()


# ---- the grid ----


async def test_devices_of_one_period_are_read_at_one_moment_and_a_phase_moves_it():
    """Beats lie at k * poll_s + phase_s of the clock, not of the moment somebody connected."""
    async with Device() as device:
        at = {"a": [], "b": [], "c": []}
        links = []
        for name, phase_s in (("a", 0.0), ("b", 0.0), ("c", 0.1)):
            one = unit(Readings(), name, poll_s=0.2, phase_s=phase_s)
            one = replace(one, on_reading=lambda r: at[r.device].append(r.taken_at_s))
            links.append(ModbusLink(Tcp("127.0.0.1", device.port), [one], clock=time.monotonic))
        tasks = []
        for link in links:
            tasks.append(asyncio.create_task(link.run()))
            await asyncio.sleep(0.03)
        await asyncio.sleep(1.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def late_s(name, phase_s):
        return [(t - phase_s + 0.002) % 0.2 for t in at[name][1:]]

    for name, phase_s in (("a", 0.0), ("b", 0.0), ("c", 0.1)):
        assert len(at[name]) >= 5
        assert sorted(late_s(name, phase_s))[2] < 0.03  # most of them; a loaded machine may delay some


# ---- who is there ----


async def test_the_wrong_device_behind_an_address_is_not_used_and_is_named():
    profile = replace(
        PROFILE,
        points=PROFILE.points | {"version": Point(name="version", unit="count", address=8, type="u16")},
        identity=(Identity(point="version", equals=4),),
    )
    async with Device() as device:
        readings = Readings()
        async with running(device, unit(readings, profile=profile, writes=RULES)) as link:
            stranger = await readings.until()
            assert set(stranger.values.values()) == {None}
            assert "version reads 0.0, bench wants 4: another device behind this address" in stranger.fault
            with pytest.raises(DeviceError, match="another device"):
                await link.write("meter", "voltage_v", 230.0)
        assert {request[:3] for request in device.requests} == {(1, 3, 8)}
        device.registers[1][8] = 4
        readings = Readings()
        async with running(device, unit(readings, profile=profile)):
            await readings.until(healthy)


async def test_a_device_without_a_profile_is_discovered_and_its_profile_told(monkeypatch):
    async def discover(read, *, name):
        assert name == "meter"
        assert list(await read(0, 2)) == [0x459C, 0x4000]
        return PROFILE

    monkeypatch.setattr(link_module, "discover", discover)
    async with Device() as device:
        device.registers[1][0:2] = [0x459C, 0x4000]
        readings, told = Readings(), []
        one = unit(readings, profile=None, on_profile=told.append, writes=RULES)
        async with running(device, one) as link:
            assert (await readings.until(healthy)).values["power_w"] == 5000.0
            assert (await link.write("meter", "voltage_v", 230.0)).confirmed
            await device.stop()
            await readings.until(lambda r: r.link == "down")
            await device.start(device.port)
            await readings.until(healthy)
        assert told == [PROFILE]


async def test_a_device_that_is_no_sunspec_device_is_named_and_left_alone():
    async with Device() as device:
        device.refused = {(3, address) for address in (0, 40000, 50000)}
        readings = Readings()
        async with running(device, unit(readings, profile=None)):
            reading = await readings.until()
        assert reading.values == {}
        assert "cannot tell what device it is" in reading.fault


async def test_p08_a_write_to_a_living_unit_outlasts_the_silence_of_another():
    async with Device() as device:
        device.fault = lambda _tid, unit_id, _pdu, frame: None if unit_id == 2 else frame
        good, dead = Readings(), Readings()
        units = [unit(good, "a", writes=RULES), unit(dead, "b", unit_id=2)]
        async with running(device, *units) as link:
            await good.until(healthy)
            for n in range(10):
                assert (await link.write("a", "voltage_v", 200.0 + n)).confirmed
                await asyncio.sleep(0.05)
        assert dead


async def test_p04_a_dead_unit_discards_nothing_of_the_others():
    async with Device() as device:
        device.fault = lambda _tid, unit_id, _pdu, frame: None if unit_id == 2 else frame
        everyone = {n: Readings() for n in (1, 2, 3)}
        units = [unit(everyone[n], f"u{n}", unit_id=n) for n in everyone]
        async with running(device, *units):
            for n in (3, 1, 3, 1):
                await everyone[n].until(healthy)
        assert {r.link for r in everyone[2]} == {"down"}
        assert all(r.link == "up" for n in (1, 3) for r in everyone[n])


async def test_p15_a_busy_device_has_no_value_not_zero():
    async with Device() as device:
        device.fault = lambda tid, unit_id, pdu, _frame: Device.frame(tid, unit_id, bytes([pdu[0] | 0x80, 6]))
        readings = Readings()
        async with running(device, unit(readings)):
            reading = await readings.until()
        assert set(reading.values.values()) == {None}
        assert "device busy" in reading.fault
