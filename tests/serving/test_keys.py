"""Addresses beyond this computer need keys, and only robots on the list are answered."""

import pytest
import zmq
from toy_robot import CONTRACT, LOOPBACK, network, running, signals

from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy, OneRobot, PolicyError
from deftly.serving.client import Client
from deftly.serving.endpoint import read_endpoint
from deftly.serving.keys import new_keys
from deftly.serving.server import Server
from deftly.serving.wire import pack, unpack


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
    "endpoint",
    ["tcp://localhost:1", "tcp://LocalHost:*", "tcp://127.8.9.1:1", "tcp://[::1]:1", "ipc:///x"],
)
def test_addresses_of_this_computer(endpoint):
    assert read_endpoint(endpoint).is_local


@pytest.mark.parametrize(
    "endpoint", ["tcp://localhost.evil.org:1", "tcp://127.0.0.1.evil.org:1", "tcp://[::]:1"]
)
def test_addresses_that_only_look_like_it(endpoint):
    assert not read_endpoint(endpoint).is_local


PORTS = ["65536", "99999", "131072", "-1", "+1", "0x10", "1e3", "١٢", "5_5", " 5", "9" * 5000]


@pytest.mark.parametrize("port", PORTS)
def test_ports_that_are_none_are_refused_and_never_wrapped(port):
    endpoint = f"tcp://127.0.0.1:{port}"
    with pytest.raises(DeftlyError, match=r"has no port: it is a number up to 65535"):
        Server(ContractPolicy(CONTRACT, network), endpoint)
    with pytest.raises(PolicyError, match=r"has no port: it is a number up to 65535"):
        Client(endpoint)


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:*", "tcp://127.0.0.1:0"])
def test_a_robot_needs_a_port(endpoint):
    with pytest.raises(PolicyError, match="it has no port"):
        Client(endpoint)


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
        "robot/openpi.token",
        "robot/server.key",
        "server/clients/robot.key",
        "server/openpi.token",
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


@pytest.mark.parametrize("endpoint", ["tcp://*:*", "tcp://[::]:0", "tcp://localhost:0"])
def test_all_addresses_with_keys(endpoint, tmp_path):
    new_keys(tmp_path / "keys")
    with running(endpoint=endpoint, keys=tmp_path / "keys/server") as server:
        port = server.endpoint.rpartition(":")[2]
        there = f"tcp://127.0.0.1:{port}"
        OneRobot(Client(there, CONTRACT, 5, tmp_path / "keys/robot")).infer(signals(0))


def test_a_name_that_is_none_is_one_line(tmp_path):
    new_keys(tmp_path / "keys")
    with pytest.raises(DeftlyError, match=r"cannot serve on 'tcp://no\.such\.host\.invalid:1': "):
        Server(
            ContractPolicy(CONTRACT, network),
            "tcp://no.such.host.invalid:1",
            keys=tmp_path / "keys/server",
        )


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


@pytest.mark.parametrize("name", ["robot.key", "arm2.key", "client.key_secret"])
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_robots_secret_is_nothing_for_the_server(tmp_path, name, mode):
    new_keys(tmp_path / "keys")
    there = tmp_path / "keys/server/clients" / name
    there.write_bytes((tmp_path / "keys/robot/client.key_secret").read_bytes())
    there.chmod(mode)
    with pytest.raises(DeftlyError) as error:
        Server(ContractPolicy(CONTRACT, network), LOOPBACK, keys=tmp_path / "keys/server")
    assert str(error.value).startswith(f"--keys: '{there}' holds a robot's secret")
    assert "leave its client.key here" in str(error.value)


def test_a_robot_has_its_own_secret_and_not_the_servers(tmp_path):
    new_keys(tmp_path / "keys")
    server, robot = tmp_path / "keys/server", tmp_path / "keys/robot"
    own = (robot / "client.key_secret").read_bytes()
    (robot / "client.key_secret").write_bytes((robot / "server.key").read_bytes())
    with pytest.raises(PolicyError, match=r"client\.key_secret' holds no secret"):
        Client("tcp://127.0.0.1:1", keys=robot)
    (robot / "client.key_secret").write_bytes(own)
    (robot / "server.key").write_bytes((server / "server.key_secret").read_bytes())
    (robot / "server.key").chmod(0o600)
    with pytest.raises(PolicyError, match=r"server\.key' holds the server's secret"):
        Client("tcp://127.0.0.1:1", keys=robot)


@pytest.mark.parametrize("kind", ["missing", "a file", "a link to nothing"])
def test_a_list_of_robots_that_is_not_there_is_said_in_words(tmp_path, kind):
    new_keys(tmp_path / "keys")
    clients = tmp_path / "keys/server/clients"
    if kind == "a link to nothing":
        (clients / "arm2.key").symlink_to(tmp_path / "nowhere")
    else:
        (clients / "robot.key").unlink()
        clients.rmdir()
    if kind == "a file":
        clients.touch()
    with pytest.raises(DeftlyError, match=r"^--keys: ") as error:
        Server(ContractPolicy(CONTRACT, network), LOOPBACK, keys=tmp_path / "keys/server")
    said = "no such file" if kind == "a link to nothing" else f"'{clients}' is no folder: make it"
    assert said in str(error.value)
    assert "Errno" not in str(error.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_secret_that_others_can_read_is_refused_at_both_ends(tmp_path, mode):
    new_keys(tmp_path / "keys")
    server, robot = tmp_path / "keys/server", tmp_path / "keys/robot"
    (server / "server.key_secret").chmod(mode)
    with pytest.raises(DeftlyError, match=r"--keys: .*server.key_secret' is a secret.*chmod 600"):
        Server(ContractPolicy(CONTRACT, network), LOOPBACK, keys=server)
    (server / "server.key_secret").chmod(0o600)
    (robot / "client.key_secret").chmod(mode)
    with running(keys=server) as running_server:
        with pytest.raises(PolicyError, match=r"client.key_secret' is a secret.*chmod 600"):
            Client(running_server.endpoint, keys=robot)
        (robot / "client.key_secret").chmod(0o400)
        OneRobot(Client(running_server.endpoint, keys=robot, timeout=5)).infer(signals(0))


@pytest.mark.parametrize("part", ["clients", "clients/robot.key"])
def test_a_list_that_everybody_can_write_to_is_refused(tmp_path, part):
    new_keys(tmp_path / "keys")
    (tmp_path / "keys/server" / part).chmod(0o777)
    with pytest.raises(DeftlyError, match=r"--keys: everybody may write to .*chmod o-w"):
        Server(ContractPolicy(CONTRACT, network), LOOPBACK, keys=tmp_path / "keys/server")


def test_a_keyed_server_at_localhost_and_many_robots_through_one_connection(tmp_path):
    new_keys(tmp_path / "keys")
    with running(endpoint="tcp://localhost:*", keys=tmp_path / "keys/server") as server:
        client = Client(server.endpoint, CONTRACT, timeout=5, keys=tmp_path / "keys/robot")
        link = client._link
        sessions = [reply["session"] for reply in link.ask_all("init", 5, [{}] * 64)]
        rows = [{"session": session, "signals": signals(0)} for session in sessions]
        link.ask_all("reset", 5, rows)
        link._socket.set(zmq.SNDHWM, 0)
        for seq in range(500, 510):
            for row in rows:
                message = {"v": 1, "type": "infer", "seq": seq, "time": 1.0, **row}
                link._socket.send_multipart([b"", pack(message)])
            replies = []
            while len(replies) < len(rows) and link._socket.poll(5000):
                replies.append(unpack(link._socket.recv_multipart()[-1]))
            assert [reply["ok"] for reply in replies] == [True] * 64
        client.close()
