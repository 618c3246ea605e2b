# The environment of the artifact on any machine with a container engine: docker build -t heteroring .
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
WORKDIR /heteroring
COPY . .
RUN make test-fast
