//! `netsim`: the laboratory from the command line.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use netsim::netns::bench::{self, Options};
use netsim::netns::load::{self, Sender};
use netsim::netns::{self, Lab, Place, attack, checked, demo, liar, matrix, soak, start, village};

const USAGE: &str = "\
usage: netsim demo               five laptops on one switch without Internet
       netsim lan [--runs N]     from `meshd up` to the first ping, N (20) times
       netsim attack garbage TARGET COUNT RATE
       netsim attack spoofed TARGET COUNT RATE FILE
                                 inside the lab only: COUNT datagrams at RATE a second
       netsim bench [--rounds N] [--peers] [--quick] [--only tcp,udp,ping,loss,rate,idle,relay] [--congestion NAME] [--out DIR]
                                 what the tunnel costs, beside the bare path and others
       netsim load receive ADDRESS
       netsim load search TARGET BYTES MILLISECONDS
       netsim load send TARGET BYTES MILLISECONDS RATE
                                 inside the lab only: UDP packets, and how many arrive
       netsim checked …          inside the lab only: loads of which every byte is checked
       netsim liar INVITE UNDERLAY
                                 inside the lab only: a member that tells the others what it is told to
       netsim matrix [--kinds a,b,...] [--pairs N] [--runs N] [--out DIR]
                                 every pair of boxes against the oracle, N (3) at a time, N (1) runs of each
       netsim village [--members N] [--rest SECONDS] [--only-rest]
                                 N (30) members, all but one behind boxes: everybody looks up everybody, the one is killed
       netsim soak [--minutes N] full load in both directions for N (10) minutes: leaks, stalls, rekeys

The meshd beside this binary is run, or the one that MESHD_BIN names.";

fn main() -> ExitCode {
    match work() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netsim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> Result<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        ["demo"] => inside(&arguments, Duration::from_secs(120), demo::run),
        ["lan"] => lan(&arguments, 20),
        ["lan", "--runs", runs] => lan(&arguments, runs.parse::<usize>().context("--runs N")?.max(1)),
        ["attack", "garbage", target, count, rate] => {
            sent(attack::garbage(target.parse()?, count.parse()?, rate.parse()?)?)
        }
        ["attack", "spoofed", target, count, rate, file] => {
            sent(attack::spoofed(target.parse()?, &std::fs::read(file)?, count.parse()?, rate.parse()?)?)
        }
        ["bench", rest @ ..] => {
            let options = Options::parse(rest)?;
            inside(&arguments, options.limit(), |lab| bench::run(lab, &options))
        }
        ["load", "receive", address] => load::receive(address.parse()?).map(|()| ExitCode::SUCCESS),
        ["load", "search", target, bytes, step] => {
            let mut sender = Sender::new(target.parse()?, bytes.parse()?)?;
            println!("{}", sender.search(milliseconds(step)?)?.to_json());
            Ok(ExitCode::SUCCESS)
        }
        ["load", "send", target, bytes, time, rate] => {
            let mut sender = Sender::new(target.parse()?, bytes.parse()?)?;
            println!("{}", sender.burst(Some(rate.parse()?), milliseconds(time)?)?.to_json());
            Ok(ExitCode::SUCCESS)
        }
        ["checked", rest @ ..] => {
            println!("{}", checked::act(rest)?);
            Ok(ExitCode::SUCCESS)
        }
        ["liar", invite, underlay] => liar::run(invite, underlay.parse()?).map(|()| ExitCode::SUCCESS),
        ["matrix", "one", a, b, logs] => {
            inside(&arguments, matrix::LIMIT, |lab| matrix::one(lab, [a, b], Path::new(logs)))
        }
        ["matrix", rest @ ..] => {
            let good = matrix::run(&matrix::Options::parse(rest)?)?;
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        ["village", rest @ ..] => {
            let options = village::Options::parse(rest)?;
            inside(&arguments, options.limit(), |lab| village::run(lab, options))
        }
        ["soak"] => soak(&arguments, 10),
        ["soak", "--minutes", minutes] => soak(&arguments, minutes.parse::<u32>().context("--minutes N")?.max(1)),
        _ => bail!("{USAGE}"),
    }
}

fn sent(count: u64) -> Result<ExitCode> {
    println!("sent {count}");
    Ok(ExitCode::SUCCESS)
}

fn milliseconds(word: &str) -> Result<Duration> {
    Ok(Duration::from_millis(word.parse()?))
}

fn lan(arguments: &[OsString], runs: usize) -> Result<ExitCode> {
    let limit = Duration::from_secs(30 + 16 * runs as u64);
    inside(arguments, limit, |lab| {
        let times = start::measure(lab, runs, |time| println!("{:.3} s", time.as_secs_f64()))?;
        println!("{times}");
        Ok(())
    })
}

fn soak(arguments: &[OsString], minutes: u32) -> Result<ExitCode> {
    let limit = Duration::from_secs(60 + 60 * u64::from(minutes));
    inside(arguments, limit, |lab| soak::run(lab, minutes))
}

fn inside(arguments: &[OsString], limit: Duration, work: impl FnOnce(&mut Lab) -> Result<()>) -> Result<ExitCode> {
    match netns::place(arguments)? {
        Place::Inside => {
            let beside = || std::env::current_exe().map(|path| path.with_file_name("meshd"));
            let binary = std::env::var_os("MESHD_BIN").map_or_else(beside, |path| Ok(PathBuf::from(path)))?;
            work(&mut Lab::new(binary, limit)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Place::Outside(mut command) => {
            let status = command.status().context("unshare(1)")?;
            Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        Place::Impossible(reason) => bail!("no lab on this machine: {reason}"),
    }
}
