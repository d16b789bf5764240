"""Configuration: where values come from, and that all that is wrong is said at once."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.spool.lane import WhenFull
from mesh.spool.settings import DEFAULT_LANES
from nodes.config import describe, load, secret
from nodes.settings import is_loopback
from nodes.spool_section import SpoolSection
from schemas.errors import ConfigurationInvalid, ExitCode
from schemas.limits import MIB
from schemas.messages import Lane

SAMPLES = Path("nodes/samples")
EDGE = """
[node]
site = "plant"
name = "edge-1"
[broker]
embedded = true
[[decisions]]
name = "pump"
topics = ["plant/+/telemetry"]
model = "models/pump.onnx"
"""


def write(folder: Path, text: str, name: str = "config.toml") -> Path:
    """A configuration file."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def problems(path: Path, environment: dict[str, str] | None = None) -> str:
    """What is said about a configuration, and that it is said with its exit code."""
    with pytest.raises(ConfigurationInvalid) as invalid:
        load(path, environment or {})
    assert invalid.value.exit_code == ExitCode.CONFIGURATION
    return "\n".join(invalid.value.problems)


def test_paths_are_relative_to_their_file(tmp_path: Path) -> None:
    """Wherever the process stands, a path means the same; absolute ones stay."""
    path = write(tmp_path, EDGE.replace('"edge-1"', '"edge-1"\nstate_directory = "../state"'))
    settings = load(path, {})
    assert settings.decisions[0].model == tmp_path / "models" / "pump.onnx"
    assert settings.node is not None
    assert settings.node.state_directory == tmp_path.parent / "state"


def test_state_goes_where_systemd_or_xdg_says(tmp_path: Path) -> None:
    """The folder of systemd first; the user's where the system's cannot be written."""
    path = write(tmp_path, EDGE)
    node = load(path, {"STATE_DIRECTORY": "/run/somewhere"}).node
    assert node is not None
    assert node.state_directory == Path("/run/somewhere")
    node = load(path, {"XDG_STATE_HOME": str(tmp_path)}).node
    assert node is not None
    assert node.state_directory in {tmp_path / "holdfast", Path("/var/lib/holdfast")}


def test_later_sources_win_key_by_key(tmp_path: Path) -> None:
    """The file, then conf.d in order, then the environment; tables of arrays are appended."""
    path = write(tmp_path, EDGE + '[health]\ninterval_seconds = 5\n[log]\nlevel = "info"\n')
    write(tmp_path, "[health]\ninterval_seconds = 6\n", "conf.d/10.toml")
    write(
        tmp_path,
        '[health]\ninterval_seconds = 7\n[[decisions]]\nname = "b"\ntopics = ["b"]\nmodel = "m"\n',
        "conf.d/20.toml",
    )
    settings = load(
        path,
        {
            "HOLDFAST_LOG__LEVEL": "debug",
            "HOLDFAST_SPOOL__BYTES_MAX": "2 GiB",
            "HOLDFAST_DECISIONS__1__TOPICS": '["c", "d/#"]',
            "HOLDFAST_DECISIONS__0__INPUT_RANGE": "{ pressure = [0, 10] }",
            "HOLDFAST_CONFIG": "is not a key of a section",
            "OTHER__LOG__LEVEL": "nonsense",
        },
    )
    assert settings.health.interval_seconds == 7
    assert settings.log.level == "debug"
    assert settings.spool.bytes_max == 2 << 30
    assert [rule.name for rule in settings.decisions] == ["pump", "b"]
    assert settings.decisions[1].topics == ("c", "d/#")
    assert settings.decisions[1].model == tmp_path / "conf.d" / "m"
    assert settings.decisions[0].input_range == {"pressure": (0, 10)}


def test_all_problems_at_once_each_with_file_key_value_and_what_is_right(tmp_path: Path) -> None:
    """One line for each problem, naming where it came from."""
    path = write(
        tmp_path,
        """
[node]
site = "Plant 1"
nmae = "edge-1"
[broker]
url = "mqtt://broker.example"
keepalive_seconds = 0
[[decisions]]
name = "pump"
topics = ["a/#/b", "ok"]
qos = 2
model = "m.onnx"
hop = "many"
colour = "red"
[decisions.input_range]
pressure = [3, 1]
[telemetry]
""",
    )
    extra = write(tmp_path, '[log]\nlevel = "loud"\n', "conf.d/log.toml")
    told = problems(
        path, {"HOLDFAST_HEALTH__INTERVAL_SECONDS": "soon", "HOLDFAST_DECISIONS__7__QOS": "1"}
    )
    for line in (
        f"{path}: node.site = 'Plant 1': ",
        f"{path}: node.name: is missing; 1 to 63 of a-z, 0-9, _ and - would be right",
        f"{path}: node.nmae: unknown key; name would be right",
        f"{path}: broker.url = 'mqtt://broker.example': anybody on the network can read",
        f"{path}: broker.keepalive_seconds = 0: 1 to 65535 would be right",
        f"{path}: decisions[0].topics[0] = 'a/#/b': ",
        f"{path}: decisions[0].qos = 2: 0 or 1",
        f"{path}: decisions[0].hop = 'many': a decision every so many readings",
        f"{path}: decisions[0].colour: unknown key; known here: ",
        f"{path}: decisions[0].input_range.pressure = [3, 1]: lowest first",
        f"{path}: telemetry: unknown key; known here: node, ",
        f"{extra}: log.level = 'loud': ",
        "HOLDFAST_HEALTH__INTERVAL_SECONDS: health.interval_seconds = 'soon': 0.1 to 3600",
        "HOLDFAST_DECISIONS__7__QOS: there is no decisions",
    ):
        assert line in told, line
    assert len(told.splitlines()) == 14


@pytest.mark.parametrize(
    ("broker", "said"),
    [
        ("", "either embedded = true or url"),
        ('embedded = true\nurl = "mqtt://127.0.0.1"', "either embedded = true or url"),
        ('url = "http://127.0.0.1"', "mqtt://host:port or mqtts://host:port would be right"),
        ('url = "mqtt://127.0.0.1:99999"', "would be right"),
        ('url = "mqtt://127.0.0.1/path"', "would be right"),
        ('url = "mqtt://10.0.0.1"', "say allow_plaintext = true"),
        ('url = "mqtt://localhost.example"', "say allow_plaintext = true"),
        ('url = "mqtt://127.0.0.1"\nca_file = "ca.pem"', "need a URL of mqtts://"),
        ('url = "mqtts://b"\nkey_file = "k"', "go together"),
    ],
)
def test_brokers_that_are_refused(tmp_path: Path, broker: str, said: str) -> None:
    """Plaintext beyond this machine, and what contradicts itself."""
    path = write(tmp_path, EDGE.replace("embedded = true", broker))
    assert said in problems(path)


def test_brokers_that_are_taken(tmp_path: Path) -> None:
    """Loopback, TLS, and plaintext where the configuration says so in words."""
    for broker, host, port, tls in (
        ('url = "mqtt://localhost"', "localhost", 1883, False),
        ('url = "mqtt://[::1]:1884"', "::1", 1884, False),
        ('url = "mqtts://broker.example"', "broker.example", 8883, True),
        ('url = "mqtt://10.0.0.1:1"\nallow_plaintext = true', "10.0.0.1", 1, False),
    ):
        section = load(write(tmp_path, EDGE.replace("embedded = true", broker)), {}).broker
        assert section is not None
        assert (section.host, section.port, section.tls) == (host, port, tls)
    assert is_loopback("127.8.9.10")
    assert not is_loopback("0.0.0.0")


def test_headquarters_listens_on_loopback_only(tmp_path: Path) -> None:
    """A listener without TLS on a network has to be asked for in words."""
    text = '[headquarters]\nname = "hq"\nembedded = true\nlisten = "0.0.0.0"\n'
    assert "allow_plaintext" in problems(write(tmp_path, text))
    section = load(write(tmp_path, text + "allow_plaintext = true\n"), {}).for_headquarters()
    assert section.listen == "0.0.0.0"


def test_secrets_are_files_that_others_cannot_read(tmp_path: Path) -> None:
    """Missing and world-readable ones are refused; what they hold is never shown."""
    broker = 'url = "mqtt://127.0.0.1"\nusername = "u"\npassword_file = "pw"'
    path = write(tmp_path, EDGE.replace("embedded = true", broker))
    assert "password_file" in problems(path)
    file = tmp_path / "pw"
    file.write_text("hunter2\n")
    file.chmod(0o644)
    told = problems(path)
    assert "others can read it; chmod 600 would be right" in told
    file.chmod(0o640)
    settings = load(path, {})
    assert settings.broker is not None
    assert settings.broker.password_file == file
    assert secret(file) == "hunter2"
    assert "hunter2" not in told + describe(settings) + repr(settings)
    file.write_text("")
    with pytest.raises(ConfigurationInvalid, match="is empty"):
        secret(file)


def test_secrets_in_the_wrong_place_are_not_shown(tmp_path: Path) -> None:
    """A password in a key or a URL is refused, and not repeated."""
    told = problems(
        write(
            tmp_path,
            EDGE.replace("embedded = true", 'password = "hunter2"\nurl = "mqtt://u:hunter3@h"'),
        ),
        {"HOLDFAST_BROKER__TOKEN": "hunter4"},
    )
    assert "broker.password: unknown key; password_file would be right" in told
    assert "no user and password in a URL" in told
    assert "hunter" not in told


def test_credentials_of_systemd(tmp_path: Path) -> None:
    """Named in the configuration, or found by their name where there is a user name."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name in ("broker-password", "uplink-up-password"):
        (credentials / name).write_text("x")
        (credentials / name).chmod(0o400)
    text = EDGE.replace("embedded = true", 'url = "mqtt://127.0.0.1"\nusername = "u"')
    text += '[[uplinks]]\nname = "up"\nurl = "tls://h"\n'
    text += 'username = "u"\npassword_file = "credential:uplink-up-password"\n'
    path = write(tmp_path, text)
    settings = load(path, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert settings.broker is not None
    assert settings.broker.password_file == credentials / "broker-password"
    assert settings.uplinks[0].password_file == credentials / "uplink-up-password"
    assert "LoadCredential" in problems(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """No file, no TOML, no UTF-8: said with the file's name."""
    assert "there is no such file" in problems(tmp_path / "none.toml")
    assert "is not TOML" in problems(write(tmp_path, "[node\n"))
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[node]\nsite = "\xe4"\n')
    assert "is not TOML" in problems(path)
    assert "cannot be read" in problems(tmp_path)


@pytest.mark.parametrize("wrong", ["3", '"text"', "[1]", "true", "{ a = 1 }", "[{ a = 1 }]"])
def test_a_section_of_another_type(tmp_path: Path, wrong: str) -> None:
    """Whatever stands where a table belongs is a problem, not a crash."""
    for section in ("node", "decisions", "uplinks", "headquarters", "broker"):
        assert section in problems(write(tmp_path, f"{section} = {wrong}\n"))


def test_rules_that_contradict_themselves(tmp_path: Path) -> None:
    """Staleness without a time, and a bare number with fields, are refused; so is a name twice."""
    assert "needs time_field" in problems(write(tmp_path, EDGE + "stale_after_ms = 5\n"))
    assert "is one field" in problems(
        write(tmp_path, EDGE + 'format = "number"\nfields = ["a", "b"]\n')
    )
    twice = EDGE + EDGE[EDGE.index("[[decisions]]") :]
    assert "pump stands twice" in problems(write(tmp_path, twice))


def test_each_command_checks_its_own_sections(tmp_path: Path) -> None:
    """What is missing is named; what another command needs is not asked for."""
    settings = load(write(tmp_path, "[log]\n"), {})
    with pytest.raises(ConfigurationInvalid) as invalid:
        settings.for_edge()
    assert len(invalid.value.problems) == 3
    with pytest.raises(ConfigurationInvalid, match="headquarters"):
        settings.for_headquarters()
    assert load(write(tmp_path, EDGE), {}).for_edge().decisions[0].name == "pump"


@pytest.mark.parametrize("name", ["edge", "edge-mosquitto", "edge-uplinks", "headquarters"])
def test_samples_are_right(name: str) -> None:
    """Each sample loads as it is, and what it says of its model is there."""
    settings = load(SAMPLES / f"{name}.toml", {})
    if name == "headquarters":
        assert settings.for_headquarters().embedded
    else:
        (rule,) = settings.for_edge().decisions
        assert rule.model.is_file()


def test_described_settings_are_a_configuration(tmp_path: Path) -> None:
    """What is described loads again as the same settings."""
    settings = load(SAMPLES / "edge.toml", {})
    text = describe(settings)
    assert tomllib.loads(text)["decisions"][0]["confidence_min"] == 0.6
    assert load(write(tmp_path, text), {}) == settings


def _lanes(folder: Path, text: str = "", environment: dict[str, str] | None = None) -> SpoolSection:
    return load(write(folder, EDGE + text), environment or {}).spool


def test_lanes_are_as_the_spool_is_made_where_nothing_is_said(tmp_path: Path) -> None:
    """Each of the seven, number by number."""
    assert _lanes(tmp_path).lane_settings() == DEFAULT_LANES


def test_each_key_of_a_lane_goes_over_its_default(tmp_path: Path) -> None:
    """Durability, window, quota, age, what when full, on or off; the rest stays."""
    lanes = _lanes(
        tmp_path,
        """
[spool.lanes.logs]
durability = "commit"
quota = "200 MiB"
max_age = "30 d"
when_full = "refuse"
[spool.lanes.events]
interval_ms = 50
max_age = 3600
[spool.lanes.alarms]
durability = "interval"
[spool.lanes.readings]
enabled = false
""",
        {"HOLDFAST_SPOOL__LANES__EVENTS__QUOTA": "64 MiB"},
    ).lane_settings()
    assert lanes == {
        **DEFAULT_LANES,
        Lane.LOGS: replace(
            DEFAULT_LANES[Lane.LOGS],
            linger_seconds=0.0,
            bytes_max=200 * MIB,
            age_seconds_max=30 * 86_400.0,
            when_full=WhenFull.REFUSE,
        ),
        Lane.EVENTS: replace(
            DEFAULT_LANES[Lane.EVENTS],
            linger_seconds=0.05,
            age_seconds_max=3600.0,
            bytes_max=64 * MIB,
        ),
        Lane.ALARMS: replace(DEFAULT_LANES[Lane.ALARMS], linger_seconds=1.0),
        Lane.READINGS: replace(DEFAULT_LANES[Lane.READINGS], enabled=False),
    }


@pytest.mark.parametrize("size", ["32 MiB", "64 MiB", "500 MiB"])
def test_of_a_smaller_spool_each_lane_has_the_same_share(tmp_path: Path, size: str) -> None:
    """Down to a mebibyte, so that the smallest spool needs no words about its lanes."""
    spool = _lanes(tmp_path, f'[spool]\nbytes_max = "{size}"\n')
    share = spool.bytes_max / (1 << 30)
    for lane, settings in spool.lane_settings().items():
        quota = DEFAULT_LANES[lane].bytes_max
        assert settings.bytes_max == (quota and max(MIB, int(quota * share)))
    assert _lanes(tmp_path, '[spool]\nbytes_max = "8 GiB"\n').lane_settings() == DEFAULT_LANES


@pytest.mark.parametrize(
    ("text", "seconds"),
    [('"90s"', 90), ('"15 m"', 900), ('"1.5 h"', 5400), ('"30 d"', 2_592_000), ("3600.5", 3600.5)],
)
def test_an_age_is_told_in_the_unit_that_suits_it(
    tmp_path: Path, text: str, seconds: float
) -> None:
    """Text with a unit, or seconds."""
    lanes = _lanes(tmp_path, f"[spool.lanes.logs]\nmax_age = {text}\n").lane_settings()
    assert lanes[Lane.LOGS].age_seconds_max == seconds


def test_all_that_is_wrong_with_lanes_is_said_at_once(tmp_path: Path) -> None:
    """Unknown lanes and keys, wrong values: each with its key, its value, and what is right."""
    path = write(
        tmp_path,
        EDGE
        + """
[spool.lanes.logz]
[spool.lanes.nonsense]
[spool.lanes.events]
quotta = 3
[spool.lanes.logs]
durability = "fsync"
interval_ms = 0
quota = "many"
max_age = "soon"
when_full = "drop"
enabled = "perhaps"
""",
    )
    told = problems(path).splitlines()
    for part in (
        "spool.lanes.logz: unknown key; logs would be right",
        "spool.lanes.nonsense: unknown key; known here: account, alarms, decisions, events",
        "spool.lanes.events.quotta: unknown key; quota would be right",
        "spool.lanes.logs.durability = 'fsync': \"commit\"",
        "spool.lanes.logs.interval_ms = 0: ",
        "spool.lanes.logs.quota = 'many': 1 MiB to 1 EiB",
        "spool.lanes.logs.max_age = 'soon': a minute to 100 years",
        "spool.lanes.logs.when_full = 'drop': \"refuse\"",
        "spool.lanes.logs.enabled = 'perhaps': true or false",
    ):
        assert [line for line in told if f"{path}: {part}" in line], part
    assert len(told) == 9


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[spool.lanes.account]\nenabled = false", "spool.lanes.account: enabled = true"),
        ('[spool.lanes.account]\nwhen_full = "refuse"', "spool.lanes.account: enabled = true"),
        ('[spool.lanes.decisions]\nwhen_full = "refuse"', "needs a quota"),
        (
            '[spool.lanes.events]\ndurability = "commit"\ninterval_ms = 5',
            'interval_ms belongs to durability = "interval"',
        ),
        (
            '[spool.lanes.decisions]\nwhen_full = "refuse"\nquota = "1 GiB"',
            "alarms 64.0 MiB, decisions 1.0 GiB; of bytes_max = 1.0 GiB at most 992.0 MiB",
        ),
        ("[spool.lanes]\nlogs = 3", "spool.lanes.logs = 3: a table of keys"),
        ("[spool]\nlanes = 3", "spool.lanes = 3: a table for each lane"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, text: str, right: str) -> None:
    """Accounts are always taken, and what refuses leaves room for the rest."""
    assert right in problems(write(tmp_path, f"{EDGE}{text}\n"))


def test_readings_are_not_kept_in_a_lane_that_takes_none(tmp_path: Path) -> None:
    """A contradiction, told where the rule stands."""
    off = "[spool.lanes.readings]\nenabled = false\n"
    assert _lanes(tmp_path, off).warnings == ()
    told = problems(write(tmp_path, f"{EDGE}keep_readings = true\n{off}"))
    assert "decisions: pump keeps readings" in told


def test_decisions_may_be_switched_off_with_a_warning(tmp_path: Path) -> None:
    """Each is stated as shed then, so nothing is hidden; but it may not be meant."""
    spool = _lanes(tmp_path, "[spool.lanes.decisions]\nenabled = false\n")
    assert not spool.lane_settings()[Lane.DECISIONS].enabled
    assert "none is recorded" in spool.warnings[0]
    assert _lanes(tmp_path).warnings == ()


def test_the_lanes_in_force_are_told_as_they_can_be_written(tmp_path: Path) -> None:
    """What is described is a configuration, and means the same."""
    text = '[spool.lanes.logs]\nmax_age = "2 w"\n[spool.lanes.events]\ninterval_ms = 7\n'
    settings = load(write(tmp_path, EDGE + text), {})
    told = describe(settings)
    assert "[spool.lanes.metrics]" in told
    assert load(write(tmp_path, told, "again.toml"), {}) == settings


def test_what_the_sample_says_of_lanes_is_right_without_its_marks(tmp_path: Path) -> None:
    """The lines that are commented out are a configuration, and what is in force but the age."""
    lines = (SAMPLES / "edge.toml").read_text().splitlines()
    start = lines.index("# [spool.lanes.logs]")
    table = [line.removeprefix("# ") for line in lines[start : start + 7]]
    logs = _lanes(tmp_path, "\n".join(table) + "\n").lane_settings()[Lane.LOGS]
    assert logs == replace(DEFAULT_LANES[Lane.LOGS], age_seconds_max=30 * 86_400.0)
