package config

// decodeFallback reads services[].fallback (1.16).
func (dr *draft) decodeFallback(v value) {
	dr.Fallback = nil
	if v.isOff() {
		return
	}
	f := &Fallback{}
	found := v.object(keys{
		"prefix":   func(v value) { v.prefix(&f.Prefix, false) },
		"format":   func(v value) { v.format(&f.Format) },
		"backends": func(v value) { f.Backends = v.backends() },
	})
	_, hasPrefix := found["prefix"]
	backends, hasBackends := found["backends"]
	format, hasFormat := found["format"]
	switch {
	case hasPrefix && hasBackends:
		backends.fail("one of them is allowed", "stands beside prefix")
	case hasFormat && !hasPrefix:
		format.fail("leave it out", "belongs to prefix")
	}
	if hasPrefix || hasBackends {
		dr.Fallback = f
	}
}

// finishFallback works out what depends on other keys of the service.
func (dr *draft) finishFallback(etcd *Etcd) {
	if dr.Fallback == nil {
		return
	}
	f := *dr.Fallback // that of defaults: is for every service
	f.EtcdPrefix = ""
	if f.Prefix != "" {
		f.EtcdPrefix = dr.Namespace + f.Prefix
		switch at, own := dr.own["fallback"]; {
		case own && etcd == nil:
			at.fail("configure etcd, or write backends:", "needs etcd:, which is not configured")
		case own && f.EtcdPrefix == dr.EtcdPrefix:
			at.fail("write another prefix", "%q is the prefix of the service itself", clip(f.EtcdPrefix, 128))
		}
	}
	dr.Fallback = &f
}
