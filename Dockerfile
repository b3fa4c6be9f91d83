# A small image: one static binary, and folders of the user who runs it. compose.yaml shows what a container of it needs.
#
# The user is not root, so CAP_NET_ADMIN, which makes the TAP device, is a capability of the file: it works where the
# container has it (--cap-add NET_ADMIN) and not where new privileges are forbidden (no-new-privileges). With RUNTIME set
# to alpine:3.22 or debian:bookworm-slim there is a shell beside the binary.
ARG BUILDER=rust:1.95-bookworm
ARG RUNTIME=scratch

FROM ${BUILDER} AS build
# A binary that is built already, as a path in this folder; with none it is built here.
ARG BINARY=
WORKDIR /src
RUN command -v setcap || { apt-get update && apt-get install -y --no-install-recommends libcap2-bin; }
COPY . .
# glibc's static libraries come with the compiler. A named target, because what runs while building cannot be static.
RUN mkdir -p /image/bin /image/empty && \
    if [ -n "$BINARY" ]; then cp "$BINARY" /image/bin/meshd; else \
        target=$(rustc --print host-tuple) && \
        RUSTFLAGS='-C target-feature=+crt-static -C strip=debuginfo' cargo build --release --locked --bin meshd --target "$target" && \
        cp "target/$target/release/meshd" /image/bin/meshd; \
    fi && \
    setcap cap_net_admin+ep /image/bin/meshd

FROM ${RUNTIME}
# Whole folders: copied alone, a file would lose its capability where docker has no BuildKit.
COPY --from=build /image/bin/ /usr/local/bin/
COPY --from=build --chown=4747:4747 /image/empty/ /var/lib/meshd/
COPY --from=build --chown=4747:4747 /image/empty/ /run/meshd/
ENV MESHD_STATE_DIR=/var/lib/meshd MESHD_RUNTIME_DIR=/run/meshd
USER 4747:4747
VOLUME /var/lib/meshd
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["meshd", "status"]
ENTRYPOINT ["meshd"]
CMD ["up"]
