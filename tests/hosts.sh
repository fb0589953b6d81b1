#!/usr/bin/env bash
# Train CartPole over two hosts: network namespaces, joined by a pair of virtual interfaces. Run by hand, as root.
#
#     tests/hosts.sh
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'ip netns del one; ip netns del two; rm -r "$folder"' EXIT
ip netns add one
ip netns add two
ip link add one0 netns one type veth peer name two0 netns two
for host in one two; do
    ip -n $host link set lo up
    ip -n $host link set ${host}0 up
done
ip -n one addr add 10.0.0.1/24 dev one0
ip -n two addr add 10.0.0.2/24 dev two0

train() {
    ip netns exec "$1" env GLOO_SOCKET_IFNAME="${1}0" OMP_NUM_THREADS=1 python -m torch.distributed.run --nnodes 2 \
        --nproc-per-node 1 --node-rank "$2" --master-addr 10.0.0.1 --master-port 29500 \
        ppo_vector.py --log-dir "$folder/$1"
}

train two 1 &
train one 0
wait
[ -d "$folder/one" ] && [ ! -e "$folder/two" ] && echo "one run folder, on the first host"
