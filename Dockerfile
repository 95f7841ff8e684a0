# Images of a cluster: `cpu` and `gpu` for Ray's nodes, which scripts/install makes from one lock, and `mlflow` for the
# tracking server. All have the same patch release of Python, because Ray refuses nodes with different ones.
#   docker build --target cpu --tag laser-orchestrator:0.1.0-cpu .
FROM python:3.11.14-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
# Health checks, also KubeRay's, use wget. /mnt/laser is the storage that all nodes share; `laser submit` writes results
# to ~/laser.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 laser \
    && install --directory --owner=laser --group=laser /mnt/laser /tmp/ray && ln -s /mnt/laser /home/laser/laser
WORKDIR /opt/laser

FROM base AS mlflow
COPY requirements.lock ./
RUN pip install --constraint requirements.lock mlflow boto3 psycopg2-binary
COPY deploy/make_bucket.py deploy/
USER laser

# Only the files that scripts/install reads, and no code: so the layers of 4.5 GB and more are built again only when a
# requirement changes.
FROM base AS requirements
# DeepSpeed compiles its operators with g++ at their first use. vLLM on CPU needs libnuma1.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml requirements.lock ./
COPY scripts/install scripts/
RUN touch README.md LICENSE \
    && python -c 'import os, tomllib; [os.makedirs(name.replace(".", "/"), exist_ok=True) for name in tomllib.load(open("pyproject.toml", "rb"))["tool"]["setuptools"]["packages"]]'
ENV PATH=/opt/laser/.venv/bin:$PATH HF_HOME=/mnt/laser/huggingface

FROM requirements AS cpu-packages
RUN scripts/install .venv cpu
COPY scripts/sbom scripts/
RUN scripts/sbom .venv sbom.json

FROM requirements AS gpu-packages
# DeepSpeed compiles with nvcc, which torch's CUDA libraries do not include. Its CUDA must be the one that torch was built
# with.
COPY --from=nvidia/cuda:13.0.1-devel-ubuntu24.04 /usr/local/cuda-13.0 /usr/local/cuda
ENV CUDA_HOME=/usr/local/cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN scripts/install .venv gpu
COPY scripts/sbom scripts/
RUN scripts/sbom .venv sbom.json

FROM cpu-packages AS cpu
COPY . .
USER laser

FROM gpu-packages AS gpu
COPY . .
USER laser
