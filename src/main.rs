//! The program: everything is in the library, the command line in `cli`.

fn main() -> std::process::ExitCode {
    meshd::cli::main()
}
