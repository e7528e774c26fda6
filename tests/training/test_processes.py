import pytest

from convit_jax.errors import InputError
from convit_jax.training.processes import join_processes


@pytest.mark.parametrize(
    "told",
    [
        {"JAX_PROCESS_ID": "1"},
        {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2"},
        {
            "JAX_COORDINATOR_ADDRESS": "host:1",
            "JAX_NUM_PROCESSES": "two",
            "JAX_PROCESS_ID": "0",
        },
    ],
)
def test_half_a_telling_is_a_mistake(told, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"expected JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        join_processes()
