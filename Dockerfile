# One file, four images: serve (no torch), train (with the trainers), load (locust), gpu (CUDA). docs/deploy.md has the
# commands. Nothing here needs a compiler at run time; whatever runs can do so on a read-only root as user 10001.

FROM python:3.11-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# tini: a trainer as process 1 would ignore SIGTERM and leave zombies; the services could do without.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 vitrine \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vitrine \
 && install --directory --owner 10001 --group 10001 /store /cache /market /work
# /tmp, and the volumes at /store, /cache, /market and /work, are all that is written to.
ENV PATH=/opt/vitrine/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    VITRINE_HOST=0.0.0.0 \
    VITRINE_HEALTH_PORT=7090 \
    VITRINE_METRICS_PORT=9090 \
    VITRINE_STORE=/store
WORKDIR /app
EXPOSE 7001 7002 7003 7004 7005 7090 9090
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["vitrine", "--help"]
ARG PIP_INDEX_URL
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="vitrine" \
      org.opencontainers.image.description="Near-line ad matching, click-rate scoring and visual search over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# The wheel with its extension; the compiler stays in this stage.
FROM base AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt scikit-build-core nanobind cmake ninja
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY native native
COPY vitrine vitrine
RUN pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels .

# Third-party packages, each set in an environment of its own; wheels only, as there is no compiler.
FROM base AS packages
WORKDIR /src
COPY constraints.txt pyproject.toml ./
COPY deploy deploy
ENV PIP_PYTHON=/opt/vitrine/bin/python \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_ONLY_BINARY=:all: \
    PIP_NO_CACHE_DIR=1
RUN python -m venv --without-pip /opt/vitrine \
 && python deploy/requirements.py serve s3 > serve.txt \
 && pip install -r serve.txt

FROM packages AS packages-train
# torch from the package index is CUDA's build, several GB with its libraries. For CPUs name PyTorch's own index of CPU
# wheels: --build-arg TORCH_INDEX=...; torch alone comes from there.
ARG TORCH_INDEX=
RUN if [ -n "${TORCH_INDEX}" ]; then pip install --no-deps -c constraints.txt --index-url "${TORCH_INDEX}" torch; fi \
 && python deploy/requirements.py serve s3 train > train.txt \
 && pip install -r train.txt

FROM packages AS packages-load
RUN python deploy/requirements.py serve s3 load > load.txt \
 && pip install -r load.txt

FROM packages AS packages-gpu
RUN python deploy/requirements.py serve s3 train gpu > gpu.txt \
 && pip install -c deploy/constraints-gpu.txt -r gpu.txt

FROM base AS train
COPY --from=packages-train /opt/vitrine /opt/vitrine
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/vitrine/bin/python install --no-cache-dir --no-deps /wheels/*.whl
COPY services services
COPY trainers trainers
COPY experiments experiments
COPY examples examples
RUN python -m compileall -q /app
USER 10001:10001

FROM base AS gpu
COPY --from=packages-gpu /opt/vitrine /opt/vitrine
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/vitrine/bin/python install --no-cache-dir --no-deps /wheels/*.whl
COPY services services
COPY trainers trainers
COPY experiments experiments
COPY examples examples
RUN python -m compileall -q /app
USER 10001:10001

FROM base AS load
COPY --from=packages-load /opt/vitrine /opt/vitrine
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/vitrine/bin/python install --no-cache-dir --no-deps /wheels/*.whl
COPY services services
COPY examples examples
COPY loadtest loadtest
RUN python -m compileall -q /app
USER 10001:10001

# Last, so that a build without --target makes this one.
FROM base AS serve
COPY --from=packages /opt/vitrine /opt/vitrine
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/vitrine/bin/python install --no-cache-dir --no-deps /wheels/*.whl
COPY services services
COPY examples examples
RUN python -m compileall -q /app
USER 10001:10001
