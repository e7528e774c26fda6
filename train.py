"""Train a model: python train.py --config configs/digits.py --workdir /tmp/digits

The same as `python -m convit_jax.train`, which runs in any directory.
"""

if __name__ == "__main__":
    from convit_jax.train import run_program

    run_program()
