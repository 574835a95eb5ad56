"""History, users and the space of a large block, without a wire."""

import time

import pytest
from asyncua import ua

from controller.clock import now_s, now_utc_s
from controller.facility.opcua import users as opcua_users
from controller.facility.opcua.history import History, Series
from controller.facility.opcua.space import BLOCK, GroupBatch, add_groups, add_types
from controller.facility.opcua.users import Users, hashed
from controller.image.feed import ImageFeed
from controller.image.model import Group, Point, Role
from controller.image.wire import VERSION, Catalogue, Update
from controller.yaml_config import ConfigError
from protocols.opcua.server_space import ROOT, Space, Thing
from protocols.opcua.server_values import Meaning, Variable
from tests.controller.facility.opcua_site import write_users


def fed(*groups):
    feed = ImageFeed("none")
    feed._take(Catalogue(VERSION, "b", 1, groups))
    feed.alive = True
    return feed


def built(feed):
    home = [ua.ObjectIds.ObjectsFolder, ua.ObjectIds.BaseObjectType]
    from asyncua.server.address_space import NodeData

    space = Space({ua.NodeId(one): NodeData(ua.NodeId(one)) for one in home}, 2)
    add_types(space)
    space.add(Thing(BLOCK, ROOT, BLOCK))
    return space, list(add_groups(space, feed, ("block/*",)))


def test_a_block_of_1152_gpus_is_built_in_no_time_and_its_nodes_when_somebody_looks():
    node = tuple(
        Point(name=f"gpus/{gpu}/{what}", unit="W") for gpu in range(8) for what in ("power_w", "limit_w")
    )
    feed = fed(*(Group(path=f"nodes/n{number}", kind="node", points=node) for number in range(144)))
    began_s = time.process_time()
    space, _ = built(feed)
    assert time.process_time() - began_s < 3.0  # 0.05 s when nothing else runs
    assert len(space.entries) > 2304 + 1152
    assert not space._made
    assert len(space[space.node_id("nodes/n143/gpus/7")].references) == 4
    assert len({id(entry.meaning) for entry in space.entries.values() if isinstance(entry, Variable)}) == 1


def test_nodes_that_were_looked_at_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("protocols.opcua.server_space.KEPT_MAX", 10)
    points = tuple(Point(name=f"p{number}") for number in range(50))
    space, _ = built(fed(Group(path="devices/d", kind="device", points=points)))
    for number in range(50):
        assert space.node_id(f"devices/d/p{number}") in space
    assert len(space._made) == 10


def test_what_nobody_watches_costs_nothing_when_it_changes():
    feed = fed(Group(path="devices/d", kind="device", points=(Point(name="a"), Point(name="b"))))
    space, _ = built(feed)
    a, b = space.entries["devices/d/a"], space.entries["devices/d/b"]
    a.batch.watch(a)
    a.batch.refresh()
    feed._take(Update(0, [1.0, 2.0], now_s(), now_utc_s()))
    assert a.batch.refresh() == a.batch.refresh()
    assert (a.value, b.value, b.version) == (1.0, None, 0)
    a.batch.unwatch(a)
    feed._take(Update(0, [3.0, 4.0], now_s(), now_utc_s()))
    a.batch.refresh()
    assert a.value == 1.0


def test_a_batch_says_the_same_version_until_something_watched_has_changed():
    feed = fed(
        Group(path="devices/d", kind="device", points=(Point(name="a", deadband=1.0), Point(name="b")))
    )
    batch = GroupBatch(feed.image.groups[0], feed)
    a = Variable("devices/d/a", "devices/d", "a", Meaning(), batch, 0)
    batch.watch(a)
    feed._take(Update(0, [10.0, 1.0], now_s(), now_utc_s()))
    version = batch.refresh()
    for values in ([10.0, 2.0], [10.9, 3.0], [9.1, 4.0]):
        feed._take(Update(0, values, now_s(), now_utc_s()))
        assert batch.refresh() == version
    feed._take(Update(0, [11.1, 4.0], now_s(), now_utc_s()))
    assert batch.refresh() > version


# --- history --------------------------------------------------------------------------------------------


class Told:
    """A batch that says what it is told to say."""

    def __init__(self):
        self.now = (0.0, 0, 0.0)

    def read(self, variable):
        value, status, utc_s = self.now
        return variable.data_value(value, status, utc_s, utc_s)


def kept(most):
    batch = Told()
    return batch, Series(Variable("a", "", "a", Meaning(is_kept=True), batch, 0), most)


def test_history_holds_the_newest_and_no_more():
    batch, series = kept(5)
    for second in range(1, 13):
        batch.now = (float(second), 0, 1e9 + second)
        series.sample()
    assert len(series) == 5
    assert [series.told(number).Value.Value for number in range(5)] == [8.0, 9.0, 10.0, 11.0, 12.0]
    assert [series.utc_s(number) - 1e9 for number in series.between(1e9 + 9, 1e9 + 11)] == [9.0, 10.0, 11.0]


def test_one_sample_is_kept_once_and_a_loss_is_kept_as_one():
    batch, series = kept(10)
    for now in (
        (1.0, 0, 1e9),
        (1.0, 0, 1e9),
        (None, 0x80310000, 1e9 + 1),
        (None, 0x80310000, 1e9 + 2),
        (2.0, 0, 1e9 + 3),
    ):
        batch.now = now
        series.sample()
    told = [series.told(number) for number in range(len(series))]
    assert [(one.Value.Value, one.StatusCode.name) for one in told] == [
        (1.0, "Good"), (None, "BadNoCommunication"), (2.0, "Good"),
    ]  # fmt: skip


def test_times_of_history_only_grow_whatever_the_clock_does():
    batch, series = kept(10)
    for utc_s in (1e9, 1e9 + 10, 1e9 - 3600, 1e9 - 3599):
        batch.now = (1.0, 0, utc_s)
        series.sample()
    times_s = [series.utc_s(number) for number in range(len(series))]
    assert times_s == sorted(set(times_s))


def test_a_value_that_is_kept_on_keeps_its_past():
    batch, series = kept(10)
    history = History(10)
    batch.now = (1.0, 0, 1e9)
    history.keep([series.variable])
    history.sample()
    again = Variable("a", "", "a", Meaning(is_kept=True), batch, 0)
    history.keep([again])
    assert len(history.read(again, 0.0, 2e9, 10).values) == 1
    history.keep([])
    assert not history.read(again, 0.0, 2e9, 10).values


def test_history_of_many_values_is_shorter_instead_of_filling_the_memory(monkeypatch):
    monkeypatch.setattr("controller.facility.opcua.history.SAMPLES_MAX", 100)
    batch, _ = kept(1)
    history = History(86_400)
    variables = [Variable(str(number), "", "a", Meaning(is_kept=True), batch, 0) for number in range(10)]
    history.keep(variables)
    for second in range(50):
        batch.now = (float(second), 0, 1e9 + second)
        history.sample()
    assert len(history.read(variables[0], 0.0, 2e9, 100).values) == 10


# --- users ----------------------------------------------------------------------------------------------


def test_a_password_is_stored_as_a_hash_that_is_another_one_each_time():
    one, other = hashed("secret"), hashed("secret")
    assert one != other
    assert one.startswith("scrypt$16384$8$1$")
    assert "secret" not in one
    with pytest.raises(ValueError, match="1 to 200"):
        hashed("")


def test_a_right_password_is_checked_once_and_a_wrong_one_each_time(tmp_path, monkeypatch):
    users = Users(write_users(tmp_path / "u.yaml", hands="operate"))
    checked = []
    monkeypatch.setattr(
        opcua_users, "_scrypt", lambda *given, real=opcua_users._scrypt: checked.append(1) or real(*given)
    )
    for _ in range(3):
        assert users.by_password("hands", "touch").role == Role.OPERATE
    assert len(checked) == 1
    assert users.by_password("hands", "wrong") is None
    assert users.by_password("nobody", "wrong") is None  # as long as for one who exists
    assert len(checked) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("users: []\nothers: 1\n", "no such setting"),
        ("users:\n  - {name: a, role: god, password: x}\n", "observe"),
        ("users:\n  - {name: a, role: observe}\n", "needs a password"),
        ("users:\n  - {name: a, role: observe, password: plain}\n", "is no hash"),
        ('users:\n  - {name: a, role: observe, password: "scrypt$1073741824$8$1$AAAA$AAAA"}\n', "is no hash"),
        (f"users:\n{'  - {name: a, role: observe, certificate: ' + 'a' * 64 + '}' + chr(10)}" * 1 +
         f"  - {{name: a, role: observe, certificate: {'b' * 64}}}\n", "given twice"),
        (f"users:\n  - {{name: anonymous, role: observe, certificate: {'b' * 64}}}\n", "not to be had"),
    ],
)  # fmt: skip
def test_a_file_of_users_says_what_is_wrong_with_it(tmp_path, text, words):
    path = tmp_path / "users.yaml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=words):
        Users(path)
