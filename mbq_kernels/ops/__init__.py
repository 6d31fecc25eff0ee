"""One file per public op: schema, shape function, autograd Functions, public function."""
