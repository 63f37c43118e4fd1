"""Addresses beyond this computer need keys, and only robots on the list are answered."""

import pytest
from toy_robot import CONTRACT, LOOPBACK, network, running, signals

from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy, OneRobot, PolicyError
from deftly.serving.client import Client
from deftly.serving.endpoint import read_endpoint
from deftly.serving.keys import new_keys
from deftly.serving.server import Server


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://0.0.0.0:0", "tcp://*:*", "tcp://[::]:5555", "tcp://lo:*", "tcp://10.0.0.1:1"],
)
def test_other_addresses_need_keys(endpoint):
    assert not read_endpoint(endpoint).is_local
    with pytest.raises(DeftlyError, match="give --keys DIR, or bind to 127"):
        Server(ContractPolicy(CONTRACT, network), endpoint)


@pytest.mark.parametrize(
    "endpoint", ["", "junk", "udp://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://"]
)
def test_bad_endpoints_are_one_line(endpoint):
    with pytest.raises(DeftlyError) as error:
        Server(ContractPolicy(CONTRACT, network), endpoint)
    assert "\n" not in str(error.value)


def test_a_port_in_use_is_one_line(server):
    with pytest.raises(DeftlyError, match=r"in use; choose another port"):
        Server(ContractPolicy(CONTRACT, network), server.endpoint)


def test_new_keys_are_whole_secret_and_never_overwritten(tmp_path):
    folder = tmp_path / "a" / "keys"
    new_keys(folder)
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        "robot/client.key_secret",
        "robot/server.key",
        "server/clients/robot.key",
        "server/server.key",
        "server/server.key_secret",
    ]
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in folder.rglob("*.key_secret"))
    assert "secret-key" not in (folder / "server/clients/robot.key").read_text()
    before = (folder / "server/server.key_secret").read_text()
    with pytest.raises(DeftlyError, match="never overwritten"):
        new_keys(folder)
    assert (folder / "server/server.key_secret").read_text() == before
    assert list(folder.parent.iterdir()) == [folder]


def test_only_robots_on_the_list_are_answered(tmp_path, monkeypatch):
    new_keys(tmp_path / "ours")
    new_keys(tmp_path / "theirs")
    stranger = tmp_path / "theirs/robot"
    (stranger / "server.key").write_bytes((tmp_path / "ours/robot/server.key").read_bytes())
    with running(endpoint="tcp://0.0.0.0:*", keys=tmp_path / "ours/server") as server:
        endpoint = server.endpoint.replace("0.0.0.0", "127.0.0.1")
        good = OneRobot(Client(endpoint, CONTRACT, timeout=5, keys=tmp_path / "ours/robot"))
        good.infer(signals(0))
        monkeypatch.setattr(Client, "patience", 0.4)
        for keys in (stranger, None):
            with pytest.raises(PolicyError, match=r"no (policy server|answer)"):
                OneRobot(Client(endpoint, CONTRACT, keys=keys))
            good.infer(signals(1))
        assert good.policy.status()["types"]["init"] == 1
        good.close()


@pytest.mark.parametrize("broken", ["missing", "no clients", "no secret", "another secret"])
def test_folders_without_keys_are_one_line(tmp_path, broken):
    keys = tmp_path / "keys/server"
    if broken != "missing":
        new_keys(tmp_path / "keys")
    if broken == "no clients":
        (keys / "clients/robot.key").unlink()
    if broken == "no secret":
        (keys / "server.key_secret").write_bytes((keys / "server.key").read_bytes())
    if broken == "another secret":
        new_keys(tmp_path / "other")
        text = (tmp_path / "other/server/server.key_secret").read_text().splitlines()
        mine = (keys / "server.key_secret").read_text().splitlines()
        (keys / "server.key_secret").write_text("\n".join([*mine[:-1], text[-1]]))
    with pytest.raises(DeftlyError, match="--keys: ") as error:
        Server(ContractPolicy(CONTRACT, network), LOOPBACK, keys=keys)
    assert "\n" not in str(error.value)
