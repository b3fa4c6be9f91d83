# A small image with the one binary. Run it with the device and the one capability it needs:
#   docker run --network host --cap-add NET_ADMIN --device /dev/net/tun -v meshd:/var/lib/meshd meshd up
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin meshd && cp target/release/meshd /meshd

FROM debian:bookworm-slim
COPY --from=build /meshd /usr/local/bin/meshd
VOLUME /var/lib/meshd
ENTRYPOINT ["meshd"]
CMD ["up"]
