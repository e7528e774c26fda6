#!/usr/bin/env bash
# Measures ConViT-S and ConViT-B on this machine's NVIDIA GPU, and timm's models on the same GPU:
#   scripts/compare_on_gpu.sh [DIRECTORY]     # for results and compiled programs; default gpu_results
# It uses python3 (or $PYTHON), which must have JAX and PyTorch for the GPU, and installs other missing
# packages into DIRECTORY/packages. First everything is compiled in parallel, then everything is
# measured one after the other.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=$(realpath --canonicalize-missing "${1:-gpu_results}")
python=${PYTHON:-python3}
batch_size=${BATCH_SIZE:-128} seconds=${SECONDS_EACH:-3}
models=${MODELS:-convit_small convit_base}

mkdir -p "$directory/packages"
export PYTHONPATH="$directory/packages${PYTHONPATH:+:$PYTHONPATH}"
export JAX_COMPILATION_CACHE_DIR="$directory/compiled/jax"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export TORCHINDUCTOR_CACHE_DIR="$directory/compiled/torch"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs GPU memory too
# Without CUDA graphs: recording one failed once for a program with cuDNN's attention, while other
# programs were being compiled.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer="

missing=$("$python" - <<'PYTHON'
import importlib.util

needed = {
    "absl": "absl-py", "array_record": "array_record", "cv2": "opencv-python-headless",
    "docstring_parser": "docstring-parser", "etils": "etils", "flax": "flax",
    "google.api": "googleapis-common-protos", "grain": "grain", "immutabledict": "immutabledict",
    "importlib_resources": "importlib_resources", "ml_collections": "ml_collections",
    "optax": "optax", "orbax.checkpoint": "orbax-checkpoint", "PIL": "pillow",
    "portpicker": "portpicker", "promise": "promise", "rich": "rich", "safetensors": "safetensors",
    "simple_parsing": "simple_parsing", "simplejpeg": "simplejpeg", "six": "six",
    "tensorflow_datasets": "tensorflow-datasets", "tensorflow_metadata": "tensorflow-metadata",
    "timm": "timm", "toml": "toml", "tree": "dm-tree",
}


def is_installed(module: str) -> bool:
    """Namespace packages are checked by a module in them, whose parent may be missing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


print("\n".join(package for module, package in needed.items() if not is_installed(module)))
PYTHON
)
if [ -n "$missing" ]; then
    echo "installing missing packages: $(echo "$missing" | paste -sd ' ')" >&2
    # Without their dependencies, which would include another JAX and another PyTorch.
    echo "$missing" | xargs "$python" -m pip install --quiet --no-deps --target "$directory/packages"
fi
"$python" - <<'PYTHON'
import sys

try:
    import jax
    import torch
except ImportError as error:
    sys.exit(f"{error}: expected a Python with jax[cuda13] and PyTorch for the GPU; set PYTHON=")
if jax.default_backend() != "gpu" or not torch.cuda.is_available():
    devices = f"JAX has {jax.devices()}, PyTorch {torch.cuda.device_count()} GPUs"
    sys.exit(f"no GPU in both: {devices}; expected jax[cuda13], PyTorch for CUDA and a driver")
PYTHON

# measure MODEL SUBJECT SECONDS → lines of JSON
measure() {
    local common=(--batch-size "$batch_size" --dtype bfloat16 --seconds "$3" --json)
    case $2 in
    attention) "$python" -m convit_jax.benchmark attention --model "$1" "${common[@]}" ;;
    model) "$python" -m convit_jax.benchmark model "$1" --against-timm --compiled "${common[@]}" ;;
    plain) "$python" -m convit_jax.benchmark model "$1" --gpsa-layers 0 "${common[@]}" ;;
    esac
}

echo "compiling everything in parallel" >&2
for model in $models; do
    for subject in model plain attention; do
        measure "$model" "$subject" 0 >"$directory/compiling-$model-$subject.log" 2>&1 &
    done
done
wait
for subject in model plain attention; do
    for model in $models; do
        echo "measuring $model, $subject" >&2
        measure "$model" "$subject" "$seconds" >"$directory/$model-$subject.jsonl"
    done
done
"$python" scripts/make_gpu_table.py "$directory"
