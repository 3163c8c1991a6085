# The commands of mmpo:  docker build --tag mmpo .
#   docker run --rm -v "$PWD:/work" mmpo build ratings.csv --peek
# Another build of torch (docs/training.md says which):  docker build --build-arg PIP_ARGS="--index-url ..." .
# Without training, and a tenth of the size:  docker build --build-arg EXTRAS=judge,argilla .
FROM python:3.11-slim-bookworm

ARG EXTRAS="judge,argilla,language,train"
ARG PIP_ARGS=""

RUN useradd --create-home --uid 1000 mmpo
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY annotate annotate
COPY train train
COPY cli cli
# hadolint ignore=SC2086
RUN pip install --no-cache-dir $PIP_ARGS -c constraints.txt ".[$EXTRAS]"

USER 1000
WORKDIR /work
ENTRYPOINT ["mmpo"]
CMD ["--help"]
