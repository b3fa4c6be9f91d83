//! The operator's door: a Unix socket, 0600. One line of JSON in ([`Command`]), one line out ([`Reply`]), then closed.
//!
//! The socket gets its permissions between bind and listen, so there is no moment at which a stranger could connect.
//! Lines, clients and waiting times are bounded: a client that hangs costs one of sixteen places for a few seconds.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::node::{Command, Reply};

use super::process::Pinned;

/// Longest request, bytes. A command is a short word and a name; 64 KiB leaves room for an invite in one.
const MAX_REQUEST: u64 = 64 * 1024;

/// Longest reply read, bytes: 10 000 peers at some 400 bytes, four times over.
const MAX_REPLY: u64 = 16 * 1024 * 1024;

/// Clients served at once; more wait in the listen queue. People type one command at a time, scripts a few.
const MAX_CLIENTS: usize = 16;

/// How long a client may take to send its line, and to take the reply. It is a local process: 5 s is generous.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the node may take. A lookup that walks the directory ends within 10 s.
const NODE_PATIENCE: Duration = Duration::from_secs(12);

/// How long [`request`] waits for the reply: longer than [`NODE_PATIENCE`], so that the daemon gets to say why.
const REPLY_PATIENCE: Duration = Duration::from_secs(15);

/// Connections the kernel keeps for us before we accept them.
const BACKLOG: i32 = 64;

/// Where the socket is in a network's runtime folder.
pub fn socket_path(runtime: &Path) -> PathBuf {
    runtime.join("api.sock")
}

/// A bound socket, not served yet. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: SocketFile,
}

/// The file of a socket, in a folder that may be out of reach by its path when it is removed.
#[derive(Debug)]
struct SocketFile {
    folder: Pinned,
    name: OsString,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.folder.path().join(&self.name));
    }
}

impl Server {
    /// Listens at `path`. A socket that is there already is taken for one left by a daemon that was killed, and is
    /// replaced: the caller holds the lock that says so.
    ///
    /// # Errors
    /// When the path is too long for a socket (107 bytes), holds something else, or cannot be written.
    pub fn bind(path: &Path) -> Result<Self> {
        let failed = || format!("cannot listen at {}", path.display());
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(path).with_context(failed)?,
            Ok(_) => bail!("{} is not a socket; move it away", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(failed),
        }
        let address = socket2::SockAddr::unix(path)
            .map_err(|_| anyhow!("{} is too long for a socket; use a shorter --runtime-dir", path.display()))?;
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).with_context(failed)?;
        let (folder, name) = path.parent().zip(path.file_name()).with_context(failed)?;
        let folder = Pinned::open(folder).with_context(failed)?;
        socket.bind(&address).with_context(failed)?;
        let file = SocketFile { folder, name: name.to_owned() };
        fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(failed)?;
        socket.listen(BACKLOG).with_context(failed)?;
        socket.set_nonblocking(true).with_context(failed)?;
        Ok(Self { listener: socket.into(), path: file })
    }

    /// Serves clients until dropped. Each command goes to `sender` with the place for its reply.
    pub async fn serve(self, sender: mpsc::Sender<(Command, oneshot::Sender<Reply>)>) {
        let Self { listener, path: _file } = self;
        let listener = match tokio::net::UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!("the API socket does not work: {error}");
                return;
            }
        };
        let mut clients = JoinSet::new();
        loop {
            if clients.len() >= MAX_CLIENTS {
                clients.join_next().await;
                continue;
            }
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        clients.spawn(serve_client(stream, sender.clone()));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: wait rather than spin.
                        tracing::warn!("the API socket accepts nobody: {error}");
                        let _ = timeout(CLIENT_PATIENCE, std::future::pending::<()>()).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }
}

/// Asks the daemon behind `path` and waits for its reply, at most 15 s.
///
/// # Errors
/// When no daemon runs there, or when it does not answer.
pub fn request(path: &Path, command: &Command) -> Result<Reply> {
    let network = path.parent().and_then(Path::file_name).unwrap_or_default().display();
    let stream = UnixStream::connect(path).map_err(|error| {
        let kind = error.kind();
        if kind == io::ErrorKind::NotFound || kind == io::ErrorKind::ConnectionRefused {
            anyhow!("meshd is not running for network {network}: start it with `meshd up {network}`")
        } else if kind == io::ErrorKind::PermissionDenied {
            anyhow!("not allowed to ask meshd for network {network}: ask as the user who runs it (sudo)")
        } else {
            anyhow!("cannot reach meshd at {}: {error}", path.display())
        }
    })?;
    let ask = || -> io::Result<Vec<u8>> {
        stream.set_write_timeout(Some(REPLY_PATIENCE))?;
        stream.set_read_timeout(Some(REPLY_PATIENCE))?;
        (&stream).write_all(&line(command))?;
        let mut reply = Vec::new();
        BufReader::new((&stream).take(MAX_REPLY)).read_until(b'\n', &mut reply)?;
        Ok(reply)
    };
    let reply = ask().map_err(|error| {
        if error.kind() == io::ErrorKind::WouldBlock {
            anyhow!("meshd for network {network} does not answer; look at its log")
        } else {
            anyhow!("meshd for network {network} hung up: {error}; look at its log")
        }
    })?;
    if reply.last() != Some(&b'\n') {
        bail!("meshd for network {network} stopped before it answered; look at its log");
    }
    serde_json::from_slice(&reply)
        .map_err(|_| anyhow!("meshd for network {network} speaks another version; restart it with this binary"))
}

async fn serve_client(mut stream: tokio::net::UnixStream, sender: mpsc::Sender<(Command, oneshot::Sender<Reply>)>) {
    let reply = match timeout(CLIENT_PATIENCE, read_command(&mut stream)).await {
        Ok(Ok(command)) => ask_node(command, &sender).await,
        Ok(Err(message)) => Reply::Error { message },
        Err(_) => Reply::Error { message: "no request came; send one line of JSON".to_owned() },
    };
    let _ = timeout(CLIENT_PATIENCE, stream.write_all(&line(&reply))).await;
}

async fn read_command(stream: &mut tokio::net::UnixStream) -> Result<Command, String> {
    let mut request = Vec::new();
    let mut reader = tokio::io::BufReader::new(stream.take(MAX_REQUEST));
    reader.read_until(b'\n', &mut request).await.map_err(|error| format!("unreadable request: {error}"))?;
    if request.last() != Some(&b'\n') {
        return Err(format!("a request is one line of at most {MAX_REQUEST} bytes"));
    }
    serde_json::from_slice(&request).map_err(|error| format!("not a command: {error}; is this the same meshd?"))
}

async fn ask_node(command: Command, sender: &mpsc::Sender<(Command, oneshot::Sender<Reply>)>) -> Reply {
    let answer = async {
        let (reply, answer) = oneshot::channel();
        sender.send((command, reply)).await.ok()?;
        answer.await.ok()
    };
    let message = match timeout(NODE_PATIENCE, answer).await {
        Ok(Some(reply)) => return reply,
        Ok(None) => "meshd is stopping",
        Err(_) => "the node did not answer in time; try again",
    };
    Reply::Error { message: message.to_owned() }
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("commands and replies have string keys only");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every lookup with an error that repeats its key, in a thread that ends with the process.
    fn serve(dir: &Path) -> PathBuf {
        let path = socket_path(dir);
        let server = Server::bind(&path).expect("bind");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        std::thread::spawn(move || {
            runtime.block_on(async {
                let (sender, mut receiver) = mpsc::channel::<(Command, oneshot::Sender<Reply>)>(1);
                let answer = async {
                    while let Some((command, reply)) = receiver.recv().await {
                        if let Command::Lookup { key } = command {
                            let _ = reply.send(Reply::Error { message: key });
                        }
                    }
                };
                tokio::join!(server.serve(sender), answer);
            });
        });
        path
    }

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("meshd-api-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        dir
    }

    fn said(path: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).expect("connect");
        stream.write_all(bytes).expect("send");
        stream.shutdown(std::net::Shutdown::Write).expect("shut down");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("reply");
        reply
    }

    #[test]
    fn a_command_is_answered_and_the_socket_is_ours_alone() {
        let dir = folder("answer");
        let path = serve(&dir);
        assert_eq!(fs::metadata(&path).expect("socket").permissions().mode() & 0o777, 0o600);
        let reply = request(&path, &Command::Lookup { key: "laptop".to_owned() }).expect("reply");
        assert_eq!(reply, Reply::Error { message: "laptop".to_owned() });
        fs::remove_dir_all(dir).expect("clean up");
    }

    #[test]
    fn garbage_and_endless_lines_are_answered_with_an_error() {
        let dir = folder("garbage");
        let path = serve(&dir);
        assert!(said(&path, b"{\"command\":\"dance\"}\n").contains("not a command"));
        assert!(said(&path, b"{\"command\":\"peers\"}").contains("one line"));
        assert!(said(&path, &vec![b'x'; 64 * 1024]).contains("one line"));
        fs::remove_dir_all(dir).expect("clean up");
    }

    #[test]
    fn a_node_that_drops_a_command_is_reported() {
        let dir = folder("drops");
        let path = serve(&dir);
        let reply = request(&path, &Command::Status).expect("reply");
        assert_eq!(reply, Reply::Error { message: "meshd is stopping".to_owned() });
        fs::remove_dir_all(dir).expect("clean up");
    }

    #[test]
    fn more_clients_than_places_are_all_served() {
        let dir = folder("many");
        let path = serve(&dir);
        let idle: Vec<_> = (1..MAX_CLIENTS).map(|_| UnixStream::connect(&path).expect("connect")).collect();
        for n in 0..3 * MAX_CLIENTS {
            let key = n.to_string();
            let reply = request(&path, &Command::Lookup { key: key.clone() }).expect("reply");
            assert_eq!(reply, Reply::Error { message: key });
        }
        drop(idle);
        fs::remove_dir_all(dir).expect("clean up");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let dir = folder("stale");
        let path = socket_path(&dir);
        drop(UnixListener::bind(&path).expect("a socket nobody listens at"));
        let error = request(&path, &Command::Status).expect_err("nobody there").to_string();
        assert!(error.contains("is not running for network") && error.contains("meshd up"), "{error}");
        drop(Server::bind(&path).expect("replaced"));
        assert!(!path.exists(), "the socket goes with its server");
        fs::write(&path, "a file").expect("a file");
        assert!(Server::bind(&path).is_err());
        assert_eq!(fs::read_to_string(&path).expect("still there"), "a file");
        fs::remove_dir_all(dir).expect("clean up");
    }
}
