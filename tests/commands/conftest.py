import pytest
from forks import RUNNING, Forks


@pytest.fixture(scope="module")
def run_forks():
    """What `deftly run` is forked from."""
    forks = Forks(RUNNING)
    yield forks
    forks.close()
