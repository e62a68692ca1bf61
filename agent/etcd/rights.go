package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// MayWrite says by its error whether key may be written, and writes nothing: no version of a key is negative, and etcd looks at the rights for both ways that a
// transaction could go before it goes one.
func MayWrite(ctx context.Context, c Client, key string) error {
	_, err := c.Raw().Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "=", -1)).Then(clientv3.OpPut(key, "")).Commit()
	return err
}
