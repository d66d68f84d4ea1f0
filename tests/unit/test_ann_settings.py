"""Settings of the ann server: indexes and shards are read, and what is wrong is refused by its variable."""

import pytest

from services.ann.settings import AnnSettings
from vitrine.runtime import settings


def loaded(*flags: str) -> AnnSettings:
    return settings.load(AnnSettings, ["--store", "s", *flags])


def test_indexes_and_the_shard_are_read_from_their_text():
    config = loaded("--indexes", "shoes,hats", "--shard", "1/4")
    assert (config.index_names, config.shard_of) == (("shoes", "hats"), (1, 4))
    assert (loaded().index_names, loaded().shard_of) == (("binary-index",), (0, 1))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SHARD", "2/2"),
        ("SHARD", "1"),
        ("SHARD", "0/0"),
        ("SHARD", "0/1025"),
        ("SHARD", "-1/2"),
        ("INDEXES", "shoes,shoes"),
        ("INDEXES", "shoes,"),
        ("INDEXES", "../shoes"),
        ("ENGINE", "gpu"),
        ("BATCHES", "-1"),
        ("FOLD_AT", "1"),
    ],
)
def test_what_means_nothing_is_refused_by_its_variable(monkeypatch, capsys, variable, value):
    monkeypatch.setenv(f"VITRINE_{variable}", value)
    with pytest.raises(SystemExit) as ended:
        loaded()
    assert ended.value.code == 2
    assert f"VITRINE_{variable}: " in capsys.readouterr().err
