package etcdtest

import clientv3 "go.etcd.io/etcd/client/v3"

// T is what Start needs of a *testing.T or *testing.B; this package does not import testing, so that a program can link it.
type T interface {
	Helper()
	Cleanup(func())
	TempDir() string
	Fatalf(format string, args ...any)
}

// Start runs an etcd that ends with the test.
func Start(t T, cfg Config) *Server {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Run(cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(s.Close)
	return s
}

// NewClient returns a client that ends with the test.
func NewClient(t T, s *Server) *clientv3.Client {
	t.Helper()
	c, err := s.Client()
	if err != nil {
		t.Fatalf("new etcd client: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
