#!/usr/bin/env bash
# Builds and runs all of docker-compose.yml on a clean Debian machine, and checks each step: deploy/try_containers.py.
#
#   deploy/try_containers.sh [FOLDER]
#
# FOLDER (default: tmp/containers here) takes the engine's data, logs and backups: about 12 GB, 20 minutes of two cores.
# As root. Without a Docker engine it installs and starts Debian's; where an official base image cannot be pulled, it
# makes a stand-in of the same name from Debian's packages. The stack is named "trial", on ports of its own.
#
# What is special on a machine goes in by the environment:
#   TRIAL_CA_BUNDLE  file of certificates that the builds trust as well
#   TRIAL_PIP_CONF   pip.conf for the builds
#   TRIAL_WHEELS     folder of wheels that pip in the builds finds, too
#   TRIAL_PULL       no: do not try to pull base images
#   TRIAL_KEEP       yes: leave the stack running at the end
#   TORCH_INDEX      index of torch's wheels, instead of that of its CPU builds
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$here/tmp/containers}
mkdir --parents "$folder"
folder=$(cd "$folder" && pwd)
started=()
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
# The release whose packages hold compose v2.
plugins=$([[ $release == bookworm ]] && echo trixie || echo "$release")

log() { echo "$(date +%T) $*"; }

finish() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
}
trap finish EXIT

install_engine() {
    log "installing Debian's Docker engine"
    apt-get update --quiet=2
    apt-get install --yes --quiet=2 --no-install-recommends docker.io iptables >"$folder/apt.log" 2>&1
}

start_engine() {
    log "starting the engine, data in $folder/docker-data"
    setsid dockerd --data-root "$folder/docker-data" >"$folder/dockerd.log" 2>&1 &
    started+=($!)
    for _ in $(seq 120); do
        docker info >/dev/null 2>&1 && return
        sleep 0.5
    done
    echo "the engine does not answer; see $folder/dockerd.log" >&2
    exit 1
}

install_plugins() { # compose and buildx are not in Debian 12; those of the next release need no newer libc
    local apt=(-o "Dir::Etc::sourcelist=$folder/plugins/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$folder/plugins/lists" -o "Dir::Cache=$folder/plugins/cache")
    log "installing compose and buildx of Debian $plugins"
    mkdir --parents "$folder/plugins/lists/partial" "$folder/plugins/cache/archives/partial" ~/.docker/cli-plugins
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $plugins main" \
        >"$folder/plugins/sources.list"
    (
        cd "$folder/plugins"
        apt-get "${apt[@]}" --quiet=2 update
        apt-get "${apt[@]}" --quiet=2 download docker-compose docker-buildx
        for package in *.deb; do dpkg --extract "$package" .; done
        cp usr/libexec/docker/cli-plugins/docker-* ~/.docker/cli-plugins/
    ) >>"$folder/apt.log" 2>&1
}

bootstrap() { # IMAGE RELEASE PACKAGES: a minimal Debian with these packages as an image
    docker image inspect "$1" >/dev/null 2>&1 && return
    command -v mmdebstrap >/dev/null || apt-get install --yes --quiet=2 --no-install-recommends mmdebstrap >>"$folder/apt.log" 2>&1
    mmdebstrap --quiet --variant=minbase --include="$3" "$2" - http://deb.debian.org/debian | docker import - "$1" >/dev/null
}

stand_in() { # NAME: from Debian's packages, what the official image of that name has for us
    local name=$1 context=$folder/stand-in
    rm -rf "$context" && mkdir "$context"
    case $name in
    python:*)
        bootstrap trial:python bookworm ca-certificates,python3,python3-venv,netbase,tzdata
        cp "${TRIAL_CA_BUNDLE:-/dev/null}" "$context/certificates"
        cp "${TRIAL_PIP_CONF:-/dev/null}" "$context/pip.conf"
        if [[ -n ${TRIAL_WHEELS:-} ]]; then
            printf '[global]\nfind-links = http://%s:%s/\ntrusted-host = %s\n' "$bridge" "$wheels_port" "$bridge" >>"$context/pip.conf"
        fi
        cat >"$context/Dockerfile" <<'END'
FROM trial:python
COPY certificates pip.conf /etc/trial/
RUN cat /etc/trial/certificates >>/etc/ssl/certs/ca-certificates.crt && mv /etc/trial/pip.conf /etc/pip.conf \
    && ln -s /usr/bin/python3 /usr/local/bin/python
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
END
        ;;
    postgres:*)
        bootstrap trial:postgres trixie ca-certificates,postgresql-17
        cat >"$context/start" <<'END'
#!/bin/sh
# As the official image: the volume's owner, a first start with the scripts of /docker-entrypoint-initdb.d, the server.
set -eu
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chown -R postgres:postgres "$PGDATA" /var/run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf %s "$POSTGRES_PASSWORD" >/tmp/password
    initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust
    rm /tmp/password
    pg_ctl --wait --options="-c listen_addresses=''" start
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    for script in /docker-entrypoint-initdb.d/*.sql; do
        psql --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --set=ON_ERROR_STOP=1 --file="$script"
    done
    pg_ctl --wait --mode=fast stop
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
fi
exec postgres -c "listen_addresses=*"
END
        cat >"$context/Dockerfile" <<'END'
FROM trial:postgres
COPY --chmod=755 start /usr/local/bin/start
ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/data
ENTRYPOINT ["start"]
END
        ;;
    *docker-socket-proxy:*)
        bootstrap trial:proxy bookworm haproxy,busybox
        cat >"$context/proxy.cfg" <<'END'
# The calls that the official proxy lets through, told by the same variables.
defaults
    mode http
    timeout connect 10s
    timeout client 10m
    timeout server 10m
frontend calls
    bind :2375
    http-request deny unless METH_GET || { env(POST) -m bool }
    http-request allow if { path -m reg ^(/v[0-9.]+)?/(_ping|version|events) }
    http-request allow if { path -m reg ^(/v[0-9.]+)?/containers } { env(CONTAINERS) -m bool }
    http-request allow if { path -m reg ^(/v[0-9.]+)?/images } { env(IMAGES) -m bool }
    http-request allow if { path -m reg ^(/v[0-9.]+)?/networks } { env(NETWORKS) -m bool }
    http-request deny
    default_backend engine
backend engine
    server socket /var/run/docker.sock
END
        cat >"$context/Dockerfile" <<'END'
FROM trial:proxy
COPY proxy.cfg /etc/proxy.cfg
RUN ln -s /bin/busybox /usr/local/bin/wget
CMD ["haproxy", "-f", "/etc/proxy.cfg"]
END
        ;;
    *) echo "there is no stand-in for $name" >&2 && exit 1 ;;
    esac
    docker build --quiet --tag "$name" "$context" >/dev/null
}

base_images() { # the names that the project's files name
    sed -n 's/^ARG PYTHON_IMAGE=//p' "$here/deploy/Dockerfile"
    sed -n 's/^ *image: \(postgres\|tecnativa\)/\1/p' "$here/docker-compose.yml"
}

command -v dockerd >/dev/null || docker info >/dev/null 2>&1 || install_engine
docker info >/dev/null 2>&1 || start_engine
docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 || install_plugins
log "$(docker version --format 'Docker engine {{.Server.Version}}'), $(docker compose version)"

subnet=$(docker network inspect bridge --format '{{(index .IPAM.Config 0).Subnet}}')
bridge=$(python3 -c 'import ipaddress, sys; print(next(ipaddress.ip_network(sys.argv[1]).hosts()))' "$subnet")
wheels_port=18900
if [[ -n ${TRIAL_WHEELS:-} ]]; then
    (cd "$TRIAL_WHEELS" && exec python3 -m http.server --bind "$bridge" $wheels_port) >"$folder/wheels.log" 2>&1 &
    started+=($!)
fi
for name in $(base_images); do
    docker image inspect "$name" >/dev/null 2>&1 && continue
    if [[ ${TRIAL_PULL:-yes} != no ]] && timeout 300 docker pull --quiet "$name" 2>"$folder/pull.log"; then continue; fi
    log "making a stand-in for $name"
    stand_in "$name"
done

cd "$here"
python3 deploy/try_containers.py "$folder"
