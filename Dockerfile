# syntax=docker/dockerfile:1

# btrexport in an image of its own: one static binary, no shell, no root.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION=$(git rev-parse HEAD) -t btrexport .
#   docker run --rm --read-only --cap-drop ALL --security-opt no-new-privileges \
#     --device /dev/sdb:/dev/sdb:r --group-add $(stat -c %g /dev/sdb) \
#     -v ./btrexport.yaml:/etc/btrexport/btrexport.yaml:ro -p 127.0.0.1:10809:10809 btrexport
#
# The r behind --device keeps the disk read-only for the container; image files come in with -v FILE:FILE:ro.
# Inside, listen on tcp://:10809 and metrics on :9810: loopback is the container's own.

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH
ARG VERSION=dev
# .git is not in the build context, so the version comes from outside and -buildvcs has nothing to read.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=${VERSION}" -o /out/btrexport ./cmd/btrexport
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go run -buildvcs=false ./packaging/licences /out/btrexport > /out/LICENSES

FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="btrexport" \
      org.opencontainers.image.description="Serves files of unmounted btrfs filesystems over NBD, read-only and verified" \
      org.opencontainers.image.source="https://github.com/btrexport/btrexport" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/btrexport /btrexport
COPY --from=build /out/LICENSES /LICENSES
COPY LICENSE NOTICE /
USER 65532:65532
# NBD, and metrics with /-/healthy and /-/ready.
EXPOSE 10809 9810
# Asks /-/ready on 127.0.0.1:9810: a configuration without metrics there has no health check (--no-healthcheck).
HEALTHCHECK --interval=30s --timeout=6s --start-period=60s CMD ["/btrexport", "status"]
ENTRYPOINT ["/btrexport"]
CMD ["serve", "-c", "/etc/btrexport/btrexport.yaml"]
