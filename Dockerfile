# One image for every Spoor service and Feast's feature server; docker-compose.yml builds it.
#
# PyTorch's default wheels bring CUDA, about 4 GB that processors do not need. Give pip PyTorch's own index of CPU wheels
# to leave it out:   docker compose build --build-arg PIP_EXTRA_INDEX_URL=…
FROM python:3.11.11-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
# Dependencies change less often than code: they come first, for the cache of layers.
COPY pyproject.toml constraints.txt README.md ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > dependencies.txt \
    && pip install --constraint constraints.txt --requirement dependencies.txt
COPY . .
RUN pip install --no-deps . && pip uninstall --yes pip

FROM python:3.11.11-slim-bookworm
RUN groupadd --gid 10001 spoor && useradd --uid 10001 --gid spoor --no-create-home --shell /usr/sbin/nologin spoor \
    && install --directory --owner spoor --group spoor /var/lib/spoor /var/lib/spoor/metrics /var/lib/spoor-served \
    && install --directory /srv/feature_repo /srv/releases \
    && ln -s /run/secrets/feature_store.yaml /srv/feature_repo/feature_store.yaml
COPY --from=build /opt/venv /opt/venv
COPY deploy/feature_repo/definitions.py /srv/feature_repo/
# Everything else of the file system is read-only: what libraries keep in a home goes to /tmp.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FEAST_USAGE=False
USER 10001:10001
WORKDIR /var/lib/spoor
CMD ["spoor", "--help"]
