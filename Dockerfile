# One image for api, streamer, flusher and the command line: the command selects the service.
#   docker build -t scoreboard .      (--build-arg REQUIREMENTS=otel: for traces; parquet: for exports)
#   docker run scoreboard python -m streamer
# docker-compose.yml defines the health check of each container, with Python's urllib.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/scoreboard && python -m venv /opt/build
# Requirements before sources: a change of code does not download them again. Wheels only, by hash.
COPY requirements/base.txt requirements/otel.txt requirements/parquet.txt requirements/build.txt requirements/
ARG REQUIREMENTS=base
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/scoreboard/bin/pip install --require-hashes --only-binary :all: \
      -r "requirements/$REQUIREMENTS.txt" \
 && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY cli cli
COPY flusher flusher
COPY kong kong
COPY lua lua
COPY scoreboard scoreboard
COPY sql sql
COPY streamer streamer
COPY web web
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist \
 && /opt/scoreboard/bin/pip install --no-index --no-deps /dist/*.whl \
 && /opt/scoreboard/bin/pip uninstall -y pip setuptools

FROM python:3.11.14-slim-bookworm
# A new volume takes the owner of the folder it is mounted on, so these belong to the user below.
RUN groupadd --gid 10001 scoreboard \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin scoreboard \
 && for folder in config secrets/api secrets/streamer secrets/flusher secrets/operator \
      secrets/rotator secrets/monitor secrets/kong secrets/owner secrets/postgres secrets/valkey secrets/counters \
      secrets/replica secrets/cluster secrets/seed secrets/oauth; do \
      install -d -o 10001 -g 10001 "/var/lib/scoreboard/$folder"; done
COPY --from=build /opt/scoreboard /opt/scoreboard
ENV PATH=/opt/scoreboard/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1
USER 10001:10001
WORKDIR /var/lib/scoreboard
# api, streamer, and the metrics and health of api, streamer, flusher, kong-sync
EXPOSE 8000 8001 9100 9101 9102 9103
STOPSIGNAL SIGTERM
CMD ["python", "-m", "api"]
