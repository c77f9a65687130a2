#!/bin/bash
# A Ray node that hears when its machine will be taken away, and leaves in time.
#
#     preemptible_node aws|gcp|none  --address=HEAD:6379 …      arguments of `ray start` follow
#
# `ray start --block` answers SIGTERM by draining its node: the trainers see it within 5 s, save a checkpoint and go on
# without this node. Kubernetes and Slurm send that signal; EC2 and Compute Engine only answer questions, so this asks.
set -euo pipefail

readonly CLOUD=$1
shift
readonly POLL_S=${POLL_S:-5}
readonly AWS_METADATA=${AWS_METADATA:-http://169.254.169.254}
readonly GCP_METADATA=${GCP_METADATA:-http://metadata.google.internal}

get() {
    wget --quiet --tries=1 --timeout=2 --output-document=- "$@"
}

# Whether the machine will be taken away. No answer is no notice.
noticed() {
    local token
    case $CLOUD in
        aws)
            token=$(get --method=PUT --header='X-aws-ec2-metadata-token-ttl-seconds: 60' "$AWS_METADATA/latest/api/token") \
                && get --header="X-aws-ec2-metadata-token: $token" \
                    "$AWS_METADATA/latest/meta-data/spot/instance-action" > /dev/null
            ;;
        gcp)
            [ "$(get --header='Metadata-Flavor: Google' "$GCP_METADATA/computeMetadata/v1/instance/preempted")" = TRUE ]
            ;;
        *)
            false
            ;;
    esac
}

case $CLOUD in
    aws | gcp | none) ;;
    *)
        echo "preemptible_node: the cloud is aws, gcp or none, not '$CLOUD'" >&2
        exit 2
        ;;
esac

ray start --block "$@" &
readonly NODE=$!
trap 'kill -TERM $NODE 2> /dev/null || true' TERM INT

while kill -0 "$NODE" 2> /dev/null; do
    if noticed; then
        echo "preemptible_node: this machine will be taken away; its Ray node drains"
        kill -TERM "$NODE" 2> /dev/null || true
        break
    fi
    sleep "$POLL_S" &
    wait $! || true
done

# A signal ends `wait` early, so it is asked again until the node has really gone.
while kill -0 "$NODE" 2> /dev/null; do
    wait "$NODE" || true
done
code=0
wait "$NODE" || code=$?
exit "$code"
