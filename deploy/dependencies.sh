#!/usr/bin/env bash
# Known holes in the dependencies, and what the images are made of.
#
#   deploy/dependencies.sh audit            what constraints.txt and constraints-gpu.txt pin, by pip-audit; status 1
#                                           where there is a hole, 3 where no database of them can be reached
#   deploy/dependencies.sh sbom [FOLDER]    for each image that was built, its Python packages as CycloneDX JSON and its
#                                           Debian packages as a list (default: tmp/sbom)
#
# The tools are installed in throw-away environments, in tmp/ and in containers.
set -euo pipefail
cd "$(dirname "$0")/.."

audit() {
    local tools=tmp/audit
    if [[ ! -x $tools/bin/pip-audit ]]; then
        "${PYTHON:-python3}" -m venv "$tools"
        "$tools/bin/pip" install --quiet --disable-pip-version-check 'pip-audit>=2.9'
    fi
    for database in pypi osv; do
        # Its status says whether it found holes or failed; what it looked up stands in its answer.
        "$tools/bin/pip-audit" --progress-spinner off --disable-pip --no-deps --aliases on --format json \
            --vulnerability-service "$database" --requirement constraints.txt --requirement constraints-gpu.txt \
            >"$tools/found.json" 2>"$tools/errors.txt" || true
        "$tools/bin/python" - "$tools/found.json" "$database" <<'END' && exit 0 || { [[ $? == 3 ]] || exit 1; }
import json, sys
try:
    packages = json.load(open(sys.argv[1]))["dependencies"]
except ValueError:
    packages = []
looked_up = [package for package in packages if "skip_reason" not in package]
for package in looked_up:
    for hole in package["vulns"]:
        print(package["name"], package["version"], hole["id"], *hole["aliases"], "fixed in:", *hole["fix_versions"])
print(f"{sys.argv[2]}: {len(looked_up)} of {len(packages)} packages looked up,", sum(len(p["vulns"]) for p in looked_up), "holes")
sys.exit(1 if any(package["vulns"] for package in looked_up) else 3 if 2 * len(looked_up) <= len(packages) else 0)
END
    done
    echo "no database of known holes can be reached, and nothing is known: $(tail -1 "$tools/errors.txt" | cut -c -200)" >&2
    exit 3
}

sbom() {
    local folder=$1 name
    mkdir --parents "$folder"
    folder=$(cd "$folder" && pwd)
    for name in $(docker image ls --format '{{.Repository}}:{{.Tag}}' embed-pipeline); do
        docker run --rm --user 0 --volume "$folder:/out" "$name" sh -c "
            python -m venv /tmp/tools && /tmp/tools/bin/pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7' \
            && /tmp/tools/bin/cyclonedx-py environment --output-reproducible --of JSON -o /out/${name/:/-}.json /opt/venv/bin/python \
            && dpkg-query --show >/out/${name/:/-}.debian.txt"
        echo "$folder/${name/:/-}.json: $(grep -c '"bom-ref"' "$folder/${name/:/-}.json") components"
    done
}

case ${1:-} in
audit) audit ;;
sbom) sbom "${2:-tmp/sbom}" ;;
*) sed -n '2,10s/^# \?//p' "$0" >&2 && exit 2 ;;
esac
