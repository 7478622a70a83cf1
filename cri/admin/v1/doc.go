// Package adminv1 is the generated form of podwright.proto, podwright's own gRPC service.
// It holds no logic; protoc with protoc-gen-go and protoc-gen-go-grpc writes it anew:
//
//	protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative podwright.proto
//
// Source: podwright.proto.
package adminv1
