# syntax=docker/dockerfile:1
FROM docker.io/library/python:3.11-slim-bookworm AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY amcsearch ./amcsearch
COPY configs ./configs
COPY latency_tables ./latency_tables
RUN pip install --no-cache-dir -c constraints.txt .

FROM docker.io/library/python:3.11-slim-bookworm
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
# The root file system may be read-only: what must survive the container goes to /out, the rest to /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    AMCSEARCH_CACHE=/out/.cache \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME /out
ENTRYPOINT ["amcsearch"]
CMD ["--help"]
