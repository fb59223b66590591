#!/bin/sh
# Makes the fixture of tests/upgrade anew: what an installation of an earlier commit consists of, as that commit has it.
# The operator's two packages, as its wheel has them, and the chart with the CRD. Needs a clone that has the commit.
#
#   tests/upgrade/make.sh 377f436
#
# 377f436 is the last commit before every end of a pod got a cause (c362ef3): since then the CRD, the chart's rights,
# the status and nearly every file of the operator have changed.
set -eu
cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"
commit=$(git rev-parse --short=7 "${1:?usage: tests/upgrade/make.sh COMMIT}")
rm -f tests/upgrade/installed-*.zip
git archive --format=zip -9 --output="tests/upgrade/installed-$commit.zip" "$commit" \
  crds/dmd_api operator/dmd_operator charts/dmd-operator
echo "tests/upgrade/installed-$commit.zip"
