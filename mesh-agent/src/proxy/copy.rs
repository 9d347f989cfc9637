//! Copies bytes between an application and a tunnel.
