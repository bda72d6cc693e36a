# syntax=docker/dockerfile:1
# Targets: batch (the default), for one job of the command line; service, for the search service, its workers, and the
# scheduler and the workers of a Dask cluster.
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu takes a torch without CUDA, …/whl/cu128 one for CUDA 12.8;
# without it torch comes from the index that pip is set to.
FROM docker.io/library/python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=""
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY amcsearch ./amcsearch
COPY configs ./configs
COPY latency_tables ./latency_tables
RUN pip install --no-cache-dir -c constraints.txt .

FROM docker.io/library/python:3.11-slim-bookworm AS base
WORKDIR /app
# The root file system may be read-only: what must survive the container goes to /out, the rest to /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    AMCSEARCH_CACHE=/out/.cache \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# a new volume takes the owner that the folder has here
RUN install --directory --owner 10001 --group 10001 /out
VOLUME /out
ENTRYPOINT ["amcsearch"]

FROM base AS job
COPY --from=build /opt/venv /opt/venv
USER 10001:10001
CMD ["--help"]

FROM job AS service
USER root
# the packages of the extras alone: all else is the layer that both targets share
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt 'amcsearch[service,cluster]'
USER 10001:10001
EXPOSE 8765
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/healthz', timeout=4)"]
CMD ["serve", "--host", "0.0.0.0", "--runs", "/out", "--workers", "0"]

FROM job AS batch
