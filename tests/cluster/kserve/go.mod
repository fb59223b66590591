module dmd-operator.io/tests/cluster/kserve

go 1.26.0

require github.com/kserve/kserve v0.16.0
